"""From a `.nemo` to a TensorRT-LLM checkpoint or a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nemotron_convert.calibration.calibrator import OWN_TEXTS, Calibrator, Scaling
from nemotron_convert.shards import Parallel
from nemotron_convert.source.nemo import Source
from nemotron_convert.target import journal
from nemotron_convert.target.copier import Copier
from nemotron_convert.target.fp8 import Scales
from nemotron_convert.target.hf_config import write_hf_configs
from nemotron_convert.target.hf_tokenizer import write_hf_tokenizer
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
from nemotron_core.files import FileEntry, hash_file, partial_path
from nemotron_core.folder import unfinished_folder, writing_errors
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_core.progress import byte_progress
from nemotron_core.text.sentencepiece_model import SentencePieceModel

HF_INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class Options:
    """What is written, and how."""

    parallel: Parallel
    """Of the TensorRT-LLM format; the Hugging Face format is never split."""
    format: Format = Format.TRTLLM
    jobs: int = 2
    """Threads of each process."""
    resume: bool = False
    """Go on from where an earlier run of the same conversion was ended."""
    reuse: bool = False
    """Take an output that an earlier run of the same conversion has finished."""
    strict: bool = False
    """Refuse NaN and Inf instead of noting them in the manifest."""
    precision: Precision = BF16_ONLY
    scaling: Scaling = OWN_TEXTS
    """Of an FP8 conversion."""

    @property
    def identity(self) -> dict[str, object]:
        """What decides the bytes that are written, but for the calibration."""
        return {
            "format": self.format.value,
            "tp": self.parallel.tp,
            "pp": self.parallel.pp,
            "dtype": self.precision.weights.value,
            "kv_cache_dtype": self.precision.kv_cache.value,
        }


def convert(source_path: Path, output: Path, options: Options, *, team: Team = ALONE) -> Manifest:
    """Write `source_path` in BF16 or FP8 to the new folder `output`.

    The folder appears under its name only when it is whole; what is unfinished stays beside it and
    can be resumed. Memory is a few MiB per job, whatever the model's size. Every process of `team`
    calls this alike and writes some of the files. NemotronError if the source, the split or the
    output cannot be.
    """
    with Source.open(source_path) as source:
        layout = lay_out(source, options)
        calibrator = None
        if options.precision.weights is Dtype.FP8:
            calibrator = Calibrator(source, options.scaling, team)
        identity = options.identity | ({"calibration": calibrator.identity} if calibrator else {})
        now = team.broadcast(journal.fingerprint(source, identity) if team.is_leader else None)
        if options.reuse and team.broadcast((output / MANIFEST_NAME).exists()):
            return _finished_before(output, now)
        with _shared_folder(output, options, team) as folder:
            return _write(source, folder, layout, options, team, calibrator, now)


def _finished_before(output: Path, now: dict[str, object]) -> Manifest:
    """NemotronError if it is of something else, or files are missing or cut short."""
    journal.require_same(output, now)
    manifest = read_manifest(output)
    for name, entry in manifest.files.items():
        path = output / name
        if not path.is_file() or path.stat().st_size != entry.size:
            raise NemotronError(
                f"{name} is missing or cut short", where=output, remedy="remove it to convert again"
            )
    return manifest


def lay_out(source: Source, options: Options) -> Layout:
    """The files that a conversion writes; NemotronError if the model cannot be split so."""
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


def room_needed(layout: Layout, folder: Path) -> int:
    """Bytes that the files of `layout` need beyond what `folder` already holds of them."""
    need = 0
    for name, tensors in layout.files.items():
        path = folder / name
        held = path.stat().st_blocks * 512 if path.exists() else 0
        need += max(0, TensorFile(path, tensors).size - held)
    return need


@contextmanager
def _shared_folder(output: Path, options: Options, team: Team) -> Iterator[Path]:
    """The leader makes and at last renames the folder, the others use it in between."""
    with ExitStack() as stack:
        if team.is_leader:
            stack.enter_context(unfinished_folder(output, keep=options.resume))
        else:
            stack.enter_context(writing_errors(output))
        yield partial_path(output)
    team.barrier()


def _write(
    source: Source,
    folder: Path,
    layout: Layout,
    options: Options,
    team: Team,
    calibrator: Calibrator | None,
    now: dict[str, object],
) -> Manifest:
    finished = team.broadcast(_begin(folder, layout, options, now) if team.is_leader else None)
    scales = None
    if calibrator:
        fp8_kv_cache = options.precision.kv_cache is Dtype.FP8
        scales = calibrator.scales(folder, options.jobs, fp8_kv_cache=fp8_kv_cache)
    mine = layout.restrict(frozenset(list(layout.files)[team.rank :: team.size]))
    entries, nonfinite = _copy(source, folder, mine, finished, options, team, scales)
    hashed = {name: entry for part in team.gather(entries) for name, entry in part.items()}
    found = set().union(*team.gather(nonfinite))
    return team.broadcast(
        _finish(source, folder, layout, options, hashed, found) if team.is_leader else None
    )


def _finish(
    source: Source,
    folder: Path,
    layout: Layout,
    options: Options,
    hashed: dict[str, FileEntry],
    nonfinite: set[str],
) -> Manifest:
    """What stands beside the weights, once they are all written."""
    _write_side_files(source, folder, layout, options)
    for path in folder.iterdir():
        if path.is_file() and path.name not in layout.files:
            hashed[path.name] = hash_file(path)
    manifest = Manifest(
        source=source.archive.path.name,
        format=options.format.value,
        dtype=options.precision.weights.value,
        kv_cache_dtype=options.precision.kv_cache.value,
        tp=options.parallel.tp,
        pp=options.parallel.pp,
        nonfinite=sorted(nonfinite),
        files=dict(sorted(hashed.items())),
    )
    manifest.write(folder)
    journal.finish(folder)
    return manifest


def _begin(
    folder: Path, layout: Layout, options: Options, now: dict[str, object]
) -> journal.Finished:
    """What an earlier run has left to go on from, and room for the rest."""
    finished = journal.start(folder, now, resume=options.resume)
    need, free = room_needed(layout, folder), shutil.disk_usage(folder).free
    if need > free:
        raise NemotronError(
            f"the checkpoint needs {need:,} more bytes, {free:,} are free",
            where=folder.parent,
            remedy="make room or name another disk with -o",
        )
    return frozenset(pair for pair in finished if (folder / pair[0]).exists())


def _copy(
    source: Source,
    folder: Path,
    layout: Layout,
    finished: journal.Finished,
    options: Options,
    team: Team,
    scales: Scales | None,
) -> tuple[dict[str, FileEntry], set[str]]:
    """Fill this process's files; their hashes, and the tensors that hold NaN or Inf."""
    files = {name: TensorFile(folder / name, tensors) for name, tensors in layout.files.items()}
    with ExitStack() as stack:
        for file in files.values():
            stack.callback(file.close)
            file.open()
        log = journal.Journal(folder, team.rank, files)
        stack.callback(log.close)
        copying = Copier(source, layout, files, finished, strict=options.strict, scales=scales)
        what = "converting" if team.size == 1 else f"process {team.rank} of {team.size}"
        with byte_progress(what, copying.nbytes, shown=team.is_leader) as report:
            copying.run(options.jobs, log, report)
        for file in files.values():
            file.sync()
        return {name: file.entry() for name, file in files.items()}, copying.nonfinite


def _write_side_files(source: Source, folder: Path, layout: Layout, options: Options) -> None:
    tokenizer = source.read_tokenizer()
    (folder / TOKENIZER_NAME).write_bytes(tokenizer)
    if options.format is Format.TRTLLM:
        config = trtllm_config(
            source.config, source.vocab_size, options.parallel, options.precision
        )
        text = config.model_dump_json(indent=2) + "\n"
        (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
        return
    write_hf_tokenizer(folder, tokenizer, source.config.max_positions)
    pieces = SentencePieceModel.parse(tokenizer)
    write_hf_configs(folder, source.config, source.vocab_size, pieces, options.precision)
    if len(layout.files) > 1:
        total = sum(spec.nbytes for tensors in layout.files.values() for spec in tensors.values())
        places = {tensor: name for name, tensors in layout.files.items() for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / HF_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
