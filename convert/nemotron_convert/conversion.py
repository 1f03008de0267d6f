"""One process's part of a conversion: it writes files into the unfinished folder."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_convert.calibration.options import CALIBRATION_NAME
from nemotron_convert.options import Options, missing_bytes, require_space
from nemotron_convert.source.nemo import Source
from nemotron_convert.target import journal
from nemotron_convert.target.copier import Copier, piece_name
from nemotron_convert.target.fp8 import Scales
from nemotron_convert.target.layout import Dtype, Format, Layout
from nemotron_convert.target.manifest import AdapterEntry, Manifest, read_manifest, require_complete
from nemotron_convert.target.tensor_file import TensorFile
from nemotron_convert.target.trtllm_config import CONFIG_NAME, trtllm_config
from nemotron_convert.target.virtual_tokens import write_virtual_tokens
from nemotron_convert.team import Team
from nemotron_core.errors import NemotronError
from nemotron_core.family import model_name
from nemotron_core.files import FileEntry, hash_file, sync, write_atomically
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_core.progress import byte_progress
from nemotron_core.text.chat_format import CARD

if TYPE_CHECKING:
    from nemotron_convert.calibration.calibrator import Calibrator


@dataclass(frozen=True)
class Conversion:
    """One process's part of a conversion into an unfinished folder."""

    source: Source
    folder: Path
    layout: Layout
    options: Options
    team: Team

    def run(self, calibrator: Calibrator | None, fingerprint: dict[str, object]) -> Manifest:
        team = self.team
        earlier = team.broadcast(self._start(fingerprint) if team.is_leader else None)
        if earlier.is_complete:  # only the rename was missing
            manifest = self._end(None) if team.is_leader else None
            return team.broadcast(manifest)
        scales = None
        if calibrator:
            fp8_kv_cache = self.options.precision.kv_cache is Dtype.FP8
            scales = calibrator.scales(self.folder, self.options.jobs, fp8_kv_cache=fp8_kv_cache)
        entries, notes = self._copy(earlier, scales)
        all_entries = {name: entry for part in team.gather(entries) for name, entry in part.items()}
        all_notes = dict(earlier.notes)
        for part in team.gather(notes):
            all_notes |= part
        manifest = None
        if team.is_leader:
            self._require_unchanged()
            self._write_side_files()
            manifest = self._end(self._manifest(all_entries, all_notes))
        return team.broadcast(manifest)

    def _start(self, fingerprint: dict[str, object]) -> journal.Progress:
        """Return what an earlier run did, after a check of the free space."""
        earlier = journal.start(self.folder, fingerprint, resume=self.options.resume)
        if earlier.is_complete:
            return earlier
        _require_finite(_nonfinite(earlier.notes), self.folder, self.options)
        known = {*self.layout.files, journal.FOLDER, journal.FINGERPRINT_NAME, CALIBRATION_NAME}
        for path in self.folder.iterdir():
            if path.name not in known:  # a side file, or one that was being written
                path.unlink()
        needed = missing_bytes(self.layout, self.folder)
        require_space(needed, shutil.disk_usage(self.folder).free, self.folder.parent)
        finished = {pair for pair in earlier.finished if (self.folder / pair[0]).exists()}
        return replace(earlier, finished=frozenset(finished))

    def _copy(
        self, earlier: journal.Progress, scales: Scales | None
    ) -> tuple[dict[str, FileEntry], journal.Notes]:
        """Write this process's files; return their hashes and the notes on what was copied."""
        own_files = list(self.layout.files)[self.team.rank :: self.team.size]
        layout = self.layout.restrict(frozenset(own_files))
        files = {
            name: TensorFile(self.folder / name, tensors) for name, tensors in layout.files.items()
        }
        with ExitStack() as stack:
            for file in files.values():
                stack.callback(file.close)
                file.open()
            log = journal.Journal(self.folder, self.team.rank, files)
            stack.callback(log.close)
            copier = Copier(
                *(self.source, layout, files, earlier.finished),
                strict=self.options.strict,
                scales=scales,
            )
            process = f"process {self.team.rank} of {self.team.size}"
            title = "converting" if self.team.size == 1 else process
            with byte_progress(title, copier.nbytes, shown=self.team.is_leader) as report:
                copier.run(self.options.jobs, log, report)
            for file in files.values():
                file.sync()
            return {name: file.entry() for name, file in files.items()}, copier.notes

    def _require_unchanged(self) -> None:
        """Raise `NemotronError` if the source changed meanwhile; nothing resumes from this then."""
        try:
            self.source.require_unchanged()
        except NemotronError:
            journal.discard(self.folder)
            raise

    def _manifest(self, entries: dict[str, FileEntry], notes: journal.Notes) -> Manifest:
        """Return the manifest, with the hashes of the side files."""
        for path in self.folder.iterdir():
            if path.is_file() and path.name not in (*self.layout.files, journal.FINGERPRINT_NAME):
                sync(path)
                entries[path.name] = hash_file(path)
        overflow, underflow = Counter[str](), Counter[str]()
        for key, note in sorted(notes.items()):
            overflow[piece_name(key)] += note.overflow
            underflow[piece_name(key)] += note.underflow
        options, path = self.options, self.source.archive.path
        calibration = None
        if options.precision.weights is Dtype.FP8:
            from nemotron_convert.calibration.record import calibration_entry  # noqa: PLC0415

            calibration = calibration_entry(self.folder)
        return Manifest(
            source=path.resolve().name,
            model=model_name(path, has_own_name=self.source.layout == "safetensors"),
            adapters=[AdapterEntry.of(adapter) for adapter in self.source.adapters],
            virtual_tokens=len(self.source.prompt_table.vectors) if self.source.prompt_table else 0,
            kind="reward" if self.source.reward_head else "text",
            format=options.format.value,
            dtype=options.precision.weights.value,
            kv_cache_dtype=options.precision.kv_cache.value,
            tp=options.parallel.tp,
            pp=options.parallel.pp,
            nonfinite=_nonfinite(notes),
            source_dtypes=list(self.source.dtypes),
            overflow=dict(+overflow),
            underflow=dict(+underflow),
            ignored_tensors=list(self.source.ignored),
            template_notes=list(self.source.chat.notes),
            other_chat_tokens=self.source.chat.tokens,
            calibration=calibration,
            files=dict(sorted(entries.items())),
        )

    def _end(self, manifest: Manifest | None) -> Manifest:
        """Write the manifest, if it is not there yet, and leave only the rename to do."""
        if manifest is not None:
            manifest.write(self.folder)
        journal.finish(self.folder)
        return checked_manifest(self.folder, self.options)

    def _write_side_files(self) -> None:
        source, precision = self.source, self.options.precision
        tokenizer = source.tokenizer
        head = source.reward_head.read() if source.reward_head else None
        chat_format = source.chat.chat_format or CARD
        (self.folder / TOKENIZER_NAME).write_bytes(tokenizer)
        if chat_format != CARD:
            chat_format.write(self.folder)
        if head is not None:
            head.write(self.folder)
        if source.prompt_table is not None:
            write_virtual_tokens(self.folder, source.prompt_table.vectors)
        if self.options.format is Format.TRTLLM:
            config = trtllm_config(
                *(source.config, source.vocab_size, self.options.parallel, precision),
                is_reward=head is not None,
            )
            write_atomically(self.folder / CONFIG_NAME, config.to_json())
            return
        # Loaded by the conversions that need them: they take a tenth of the start.
        from nemotron_convert.target.hf_config import write_hf_configs  # noqa: PLC0415
        from nemotron_convert.target.hf_index import write_hf_index  # noqa: PLC0415
        from nemotron_convert.target.hf_tokenizer import write_hf_tokenizer  # noqa: PLC0415
        from nemotron_core.text.sentencepiece_model import (  # noqa: PLC0415
            SentencePieceModel,
        )

        write_hf_tokenizer(self.folder, tokenizer, source.config.max_positions, chat_format)
        pieces = SentencePieceModel.parse(tokenizer)
        write_hf_configs(
            *(self.folder, source.config, source.vocab_size, pieces, precision),
            is_reward=head is not None,
            end_piece=chat_format.end_piece,
        )
        write_hf_index(self.folder, self.layout, head)


def checked_manifest(folder: Path, options: Options) -> Manifest:
    """Return the manifest of a complete folder.

    Raises `NemotronError` if a file is missing or too short, or there is NaN or Inf and that is
    refused.
    """
    manifest = read_manifest(folder)
    require_complete(folder, manifest)
    _require_finite(manifest.nonfinite, folder, options)
    return manifest


def _require_finite(nonfinite: list[str], folder: Path, options: Options) -> None:
    """Raise `NemotronError` if there are tensors with NaN or Inf and that is refused."""
    if options.strict and nonfinite:
        raise NemotronError(
            f"tensor {nonfinite[0]} holds NaN or Inf",
            where=folder,
            remedy="copy the checkpoint again, or convert it without --strict",
        )


def _nonfinite(notes: journal.Notes) -> list[str]:
    """Return the source tensors, with their layers, that hold NaN or Inf."""
    return sorted({piece_name(key) for key, note in notes.items() if note.nonfinite})
