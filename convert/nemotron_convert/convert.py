"""The conversion of a `.nemo` to a TensorRT-LLM checkpoint or a Hugging Face folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nemotron_convert.calibration.calibrator import Calibrator
from nemotron_convert.calibration.options import OWN_TEXTS, CalibrationOptions
from nemotron_convert.shards import Parallel
from nemotron_convert.source.nemo import Source
from nemotron_convert.target import journal
from nemotron_convert.target.copier import Copier
from nemotron_convert.target.fp8 import Scales
from nemotron_convert.target.hf_config import write_hf_configs
from nemotron_convert.target.hf_tokenizer import write_hf_tokenizer
from nemotron_convert.target.json_files import write_json
from nemotron_convert.target.layout import (
    BF16_ONLY,
    Dtype,
    Format,
    Layout,
    Precision,
    hf_layout,
    trtllm_layout,
)
from nemotron_convert.target.manifest import MANIFEST_NAME, Manifest, read_manifest
from nemotron_convert.target.tensor_file import TensorFile
from nemotron_convert.target.trtllm_config import CONFIG_NAME, trtllm_config
from nemotron_convert.team import ALONE, Team
from nemotron_core.errors import NemotronError
from nemotron_core.files import FileEntry, hash_file, partial_path, write_atomically
from nemotron_core.folder import unfinished_folder, writing_errors
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_core.progress import byte_progress
from nemotron_core.text.sentencepiece_model import SentencePieceModel

HF_INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class Options:
    """Options of a conversion."""

    parallel: Parallel
    """TP ranks and PP stages. The Hugging Face format must have one of each."""
    format: Format = Format.TRTLLM
    jobs: int = 2
    """Number of threads of each process."""
    resume: bool = False
    """Whether to resume an interrupted run of the same conversion."""
    reuse: bool = False
    """Whether to accept the output of a finished run of the same conversion."""
    strict: bool = False
    """Whether to refuse NaN and Inf instead of listing them in the manifest."""
    precision: Precision = BF16_ONLY
    calibration: CalibrationOptions = OWN_TEXTS
    """Source of the scales of an FP8 conversion."""

    @property
    def identity(self) -> dict[str, object]:
        """The options that decide the bytes that are written, without the calibration."""
        return {
            "format": self.format.value,
            "tp": self.parallel.tp,
            "pp": self.parallel.pp,
            "dtype": self.precision.weights.value,
            "kv_cache_dtype": self.precision.kv_cache.value,
        }


def convert(source_path: Path, output: Path, options: Options, *, team: Team = ALONE) -> Manifest:
    """Convert the `.nemo` at `source_path` to the new folder `output` and return its manifest.

    The folder gets its name only when it is complete; until then it stands beside it with the
    suffix `.partial`, from which an interrupted run can be resumed. Memory is a few MiB per job,
    whatever the model's size. Every process of `team` must call this alike and writes some of the
    files. Raises `NemotronError` if the source cannot be read, the model cannot be split as
    requested, or the output cannot be written.
    """
    with Source.open(source_path) as source:
        layout = lay_out(source, options)
        calibrator = None
        if options.precision.weights is Dtype.FP8:
            calibrator = Calibrator(source, options.calibration, team)
        identity = options.identity | ({"calibration": calibrator.identity} if calibrator else {})
        fingerprint = team.broadcast(
            journal.fingerprint(source, identity) if team.is_leader else None
        )
        if options.reuse and team.broadcast((output / MANIFEST_NAME).exists()):
            return _finished_manifest(output, fingerprint)
        with _shared_folder(output, options, team) as folder:
            return _Conversion(source, folder, layout, options, team).run(calibrator, fingerprint)


def _finished_manifest(output: Path, fingerprint: dict[str, object]) -> Manifest:
    """Return the manifest of a finished output.

    Raises `NemotronError` if the output is of another conversion or a file is missing or too short.
    """
    journal.require_same(output, fingerprint)
    manifest = read_manifest(output)
    for name, entry in manifest.files.items():
        path = output / name
        if not path.is_file() or path.stat().st_size != entry.size:
            raise NemotronError(
                f"{name} is missing or cut short", where=output, remedy="remove it to convert again"
            )
    return manifest


def lay_out(source: Source, options: Options) -> Layout:
    """Return the files and tensors that a conversion writes.

    Raises `NemotronError` if the model cannot be split as requested, or the options contradict
    each other.
    """
    precision = options.precision
    if precision.kv_cache is Dtype.FP8 and precision.weights is not Dtype.FP8:
        raise NemotronError(
            "an FP8 KV cache needs calibrated scales",
            where="--kv-cache-dtype",
            remedy="add --dtype fp8",
        )
    if options.format is Format.HF:
        if options.parallel != Parallel(1, 1):
            raise NemotronError(
                "the Hugging Face format is not split", where="--tp, --pp", remedy="leave them out"
            )
        return hf_layout(source.config, source.vocab_size, precision)
    options.parallel.check(source.config)
    return trtllm_layout(source.config, source.vocab_size, options.parallel, precision)


def tensor_bytes(layout: Layout) -> int:
    """Return the number of bytes of all tensors of `layout`."""
    return sum(spec.nbytes for tensors in layout.files.values() for spec in tensors.values())


def missing_bytes(layout: Layout, folder: Path) -> int:
    """Return the number of bytes that the files of `layout` still need on the disk of `folder`."""
    missing = 0
    for name, tensors in layout.files.items():
        path = folder / name
        held = path.stat().st_blocks * 512 if path.exists() else 0
        missing += max(0, TensorFile(path, tensors).size - held)
    return missing


def require_space(needed: int, free: int, folder: Path) -> None:
    """Raise `NemotronError` if fewer than `needed` bytes are free on the disk of `folder`."""
    if needed > free:
        raise NemotronError(
            f"the checkpoint needs {needed:,} more bytes, {free:,} are free",
            where=folder,
            remedy="make room or name another disk with -o",
        )


@contextmanager
def _shared_folder(output: Path, options: Options, team: Team) -> Iterator[Path]:
    """Open the unfinished folder on every process; the leader creates and finally renames it."""
    with ExitStack() as stack:
        if team.is_leader:
            stack.enter_context(unfinished_folder(output, keep=options.resume))
        else:
            stack.enter_context(writing_errors(output))
        yield partial_path(output)
    team.barrier()


@dataclass(frozen=True)
class _Conversion:
    """One process's part of a conversion into an unfinished folder."""

    source: Source
    folder: Path
    layout: Layout
    options: Options
    team: Team

    def run(self, calibrator: Calibrator | None, fingerprint: dict[str, object]) -> Manifest:
        team = self.team
        finished = team.broadcast(self._start(fingerprint) if team.is_leader else None)
        scales = None
        if calibrator:
            fp8_kv_cache = self.options.precision.kv_cache is Dtype.FP8
            scales = calibrator.scales(self.folder, self.options.jobs, fp8_kv_cache=fp8_kv_cache)
        entries, nonfinite = self._copy(finished, scales)
        all_entries = {name: entry for part in team.gather(entries) for name, entry in part.items()}
        all_nonfinite = set().union(*team.gather(nonfinite))
        manifest = self._finish(all_entries, all_nonfinite) if team.is_leader else None
        return team.broadcast(manifest)

    def _start(self, fingerprint: dict[str, object]) -> journal.Finished:
        """Return the tensors that an earlier run finished, after a check of the free space."""
        finished = journal.start(self.folder, fingerprint, resume=self.options.resume)
        needed = missing_bytes(self.layout, self.folder)
        require_space(needed, shutil.disk_usage(self.folder).free, self.folder.parent)
        return frozenset(pair for pair in finished if (self.folder / pair[0]).exists())

    def _copy(
        self, finished: journal.Finished, scales: Scales | None
    ) -> tuple[dict[str, FileEntry], set[str]]:
        """Write this process's files; return their hashes and the tensors that hold NaN or Inf."""
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
                self.source, layout, files, finished, strict=self.options.strict, scales=scales
            )
            process = f"process {self.team.rank} of {self.team.size}"
            title = "converting" if self.team.size == 1 else process
            with byte_progress(title, copier.nbytes, shown=self.team.is_leader) as report:
                copier.run(self.options.jobs, log, report)
            for file in files.values():
                file.sync()
            return {name: file.entry() for name, file in files.items()}, copier.nonfinite

    def _finish(self, entries: dict[str, FileEntry], nonfinite: set[str]) -> Manifest:
        """Write the files beside the weights and the manifest, once all weights are written."""
        self._write_side_files()
        for path in self.folder.iterdir():
            if path.is_file() and path.name not in self.layout.files:
                entries[path.name] = hash_file(path)
        options = self.options
        manifest = Manifest(
            source=self.source.archive.path.name,
            format=options.format.value,
            dtype=options.precision.weights.value,
            kv_cache_dtype=options.precision.kv_cache.value,
            tp=options.parallel.tp,
            pp=options.parallel.pp,
            nonfinite=sorted(nonfinite),
            files=dict(sorted(entries.items())),
        )
        manifest.write(self.folder)
        journal.finish(self.folder)
        return manifest

    def _write_side_files(self) -> None:
        source, precision = self.source, self.options.precision
        tokenizer = source.read_tokenizer()
        (self.folder / TOKENIZER_NAME).write_bytes(tokenizer)
        if self.options.format is Format.TRTLLM:
            config = trtllm_config(
                source.config, source.vocab_size, self.options.parallel, precision
            )
            write_atomically(self.folder / CONFIG_NAME, config.model_dump_json(indent=2) + "\n")
            return
        write_hf_tokenizer(self.folder, tokenizer, source.config.max_positions)
        pieces = SentencePieceModel.parse(tokenizer)
        write_hf_configs(self.folder, source.config, source.vocab_size, pieces, precision)
        files = self.layout.files
        if len(files) > 1:
            index = {
                "metadata": {"total_size": tensor_bytes(self.layout)},
                "weight_map": {tensor: name for name in files for tensor in files[name]},
            }
            write_json(self.folder / HF_INDEX_NAME, index)
