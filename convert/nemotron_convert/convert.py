"""From a `.nemo` to a TensorRT-LLM checkpoint, chunk by chunk."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nemotron_convert.arrays import BF16_BYTES, Chunk, StoredArray
from nemotron_convert.checkpoint_config import CONFIG_NAME, trtllm_config
from nemotron_convert.errors import NemotronError
from nemotron_convert.folder import new_folder
from nemotron_convert.manifest import Manifest, hash_file
from nemotron_convert.progress import byte_progress
from nemotron_convert.rank_file import RankFile, TensorSpec
from nemotron_convert.shards import Parallel
from nemotron_convert.source import Source
from nemotron_convert.tensor_map import TENSOR_MAP, RuleShape, TensorRule, rule_shape, stages

TOKENIZER_NAME = "tokenizer.model"
BAND_BYTES = 8 << 20
"""How much of a chunk one thread holds at a time."""

Report = Callable[[int], None]


def convert(source_path: Path, output: Path, parallel: Parallel, *, jobs: int = 2) -> Manifest:
    """Write the BF16 checkpoint of `source_path` to the new folder `output`.

    The folder appears under its name only when it is whole. Memory is `jobs` bands, whatever the
    model's size. NemotronError if the source, the split or the output cannot be.
    """
    with Source.open(source_path) as source:
        parallel.check(source.config)
        with new_folder(output) as folder:
            return _write(source, folder, parallel, jobs)


def rank_name(rank: int) -> str:
    """File of one rank, counted over all stages: stage · TP + TP rank."""
    return f"rank{rank}.safetensors"


def _write(source: Source, folder: Path, parallel: Parallel, jobs: int) -> Manifest:
    config = trtllm_config(source.config, source.vocab_size, parallel)
    (folder / CONFIG_NAME).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / TOKENIZER_NAME).write_bytes(source.read_tokenizer())
    plan = _Plan.of(source, folder, parallel)
    room = sum(file.size for file in plan.files)
    if room > (free := shutil.disk_usage(folder).free):
        raise NemotronError(
            f"the checkpoint needs {room:,} bytes, {free:,} are free",
            where=folder.parent,
            remedy="make room or name another disk with -o",
        )
    with ExitStack() as stack:
        for file in plan.files:
            stack.callback(file.close)
            file.create()
        with byte_progress("converting", source.nbytes) as report:
            plan.run(jobs, report)
    return _write_manifest(source, folder, parallel, jobs)


def _write_manifest(source: Source, folder: Path, parallel: Parallel, jobs: int) -> Manifest:
    paths = sorted(folder.iterdir())
    total = sum(path.stat().st_size for path in paths)
    with byte_progress("hashing", total) as report, ThreadPoolExecutor(jobs) as pool:
        entries = list(pool.map(lambda path: hash_file(path, report), paths))
    manifest = Manifest(
        source=source.archive.path.name,
        dtype="bf16",
        tp=parallel.tp,
        pp=parallel.pp,
        files={path.name: entry for path, entry in zip(paths, entries, strict=True)},
    )
    manifest.write(folder)
    return manifest


@dataclass(frozen=True)
class _Copy:
    """All that one chunk needs: where it is read and the rank tensors it is part of."""

    rule: TensorRule
    array: StoredArray
    chunk: Chunk
    shape: RuleShape
    targets: tuple[tuple[int, str], ...]
    """(stage, tensor name) that hold this chunk's layer."""


@dataclass(frozen=True)
class _Plan:
    """The rank files laid out, and every chunk's way into them in the archive's order."""

    files: list[RankFile]
    copies: list[_Copy]
    tp: int
    sequential: bool
    centered: bool

    @classmethod
    def of(cls, source: Source, folder: Path, parallel: Parallel) -> _Plan:
        specs: list[dict[str, TensorSpec]] = [{} for _ in range(parallel.pp)]
        copies = []
        for rule in TENSOR_MAP:
            shape = rule_shape(rule, source.config, source.vocab_size, parallel.tp)
            targets = defaultdict(list)
            for stage, layer, name in stages(rule, parallel, source.config.num_layers):
                specs[stage][name] = TensorSpec("BF16", shape.rank_shape)
                targets[layer].append((stage, name))
            array = source.tensors[rule.source]
            for chunk in array.chunks:
                copies.append(_Copy(rule, array, chunk, shape, tuple(targets[chunk.layer])))
        copies.sort(key=lambda copy: (copy.chunk.member.offset, copy.chunk.offset))
        files = [
            RankFile(folder / rank_name(rank), specs[rank // parallel.tp])
            for rank in range(parallel.world_size)
        ]
        return cls(
            files, copies, parallel.tp, source.archive.sequential, source.config.gamma_is_centered
        )

    def run(self, jobs: int, report: Report) -> None:
        """Copy every chunk; the first error, or Ctrl-C, ends the rest between two bands."""
        pool = ThreadPoolExecutor(1 if self.sequential else jobs)
        stopped = False

        def copy(one: _Copy) -> None:
            for first in range(0, one.chunk.rows, rows := _band_rows(one.chunk)):
                if stopped:
                    return
                self._copy_band(one, first, min(rows, one.chunk.rows - first), report)

        try:
            futures = [pool.submit(copy, one) for one in self.copies]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            stopped = True
            pool.shutdown(cancel_futures=True)

    def _copy_band(self, copy: _Copy, first: int, rows: int, report: Report) -> None:
        chunk = copy.chunk
        band = copy.array.read(chunk, first, rows)
        if copy.rule.is_gamma and self.centered:
            band = _plus_one(band)
        top, left = chunk.row + first, chunk.column
        for block in copy.shape.blocks:
            first_row, end_row = max(top, block.row), min(top + rows, block.row + block.rows)
            first_column = max(left, block.column)
            end_column = min(left + chunk.columns, block.column + block.columns)
            if first_row >= end_row or first_column >= end_column:
                continue
            part = band[first_row - top : end_row - top, first_column - left : end_column - left]
            row, column = block.rank_row + first_row - block.row, first_column - block.column
            for stage, name in copy.targets:
                self.files[stage * self.tp + block.tp].write(name, row, column, part)
        report(band.size * BF16_BYTES)


def _band_rows(chunk: Chunk) -> int:
    return max(1, BAND_BYTES // chunk.pitch)


def _plus_one(gamma: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """LayerNorm1P's gamma + 1 in BF16, added in float32 as ModelOpt does."""
    values = gamma.view(ml_dtypes.bfloat16).astype(np.float32) + np.float32(1)
    rounded: NDArray[np.uint16] = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return rounded
