"""Reports on a `.nemo` and on a checkpoint, as tables and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from nemotron_convert.shards import allowed_tp
from nemotron_convert.source.arrays import BF16_BYTES
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.manifest import read_manifest, require_unchanged
from nemotron_convert.tensor_map import TENSOR_MAP


class TensorReport(BaseModel):
    """Shape of a tensor and of its stored chunks, in elements."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]


class ModelReport(BaseModel):
    """Report on a `.nemo`. The fields are the keys of `nemotron inspect --json`."""

    source: str
    layout: str
    """Name of the format in which the weights are stored."""
    dtype: str
    parameters: int
    weight_bytes: int
    config: dict[str, int | float | bool | str]
    vocab_size: int
    allowed_tp: list[int]
    """Numbers of tensor-parallel ranks that the model can be split over."""
    tensors: list[TensorReport]

    def print(self, console: Console) -> None:
        """Print a table of the model and a table of its tensors."""
        facts = _facts_table(
            {
                "layout": f"{self.layout}, {self.dtype}",
                "parameters": self.parameters,
                "weights": f"{self.weight_bytes:,} bytes ({BF16_BYTES} per parameter)",
                "vocabulary": self.vocab_size,
                **self.config,
                "allowed TP": ", ".join(map(str, self.allowed_tp)),
            }
        )
        tensors = Table("tensor", "shape", "chunks", box=None)
        for tensor in self.tensors:
            tensors.add_row(tensor.name, _format_shape(tensor.shape), _format_shape(tensor.chunks))
        console.print(facts)
        console.print()
        console.print(tensors)


class CheckpointReport(BaseModel):
    """Report on a checkpoint. The fields are the keys of `nemotron inspect --json`."""

    checkpoint: str
    source: str
    format: str
    dtype: str
    tp: int
    pp: int
    bytes: int
    files: int
    """Number of files."""
    hash: str
    checked: bool
    """Whether every file was read and matches its hash in the manifest."""

    def print(self, console: Console) -> None:
        """Print a table of the checkpoint."""
        console.print(_facts_table(self.model_dump(exclude={"checkpoint"})))


def inspect(path: Path) -> ModelReport:
    """Check a `.nemo` without reading its weights, and report on it.

    Raises `NemotronError` if the `.nemo` cannot be read or is not consistent.
    """
    with Source.open(path) as source:
        tensors = [source.tensors[rule.source] for rule in TENSOR_MAP]
        return ModelReport(
            source=str(path),
            layout=source.layout,
            dtype="bfloat16",
            parameters=sum(math.prod(tensor.shape) for tensor in tensors),
            weight_bytes=source.nbytes,
            config=dataclasses.asdict(source.config),
            vocab_size=source.vocab_size,
            allowed_tp=allowed_tp(source.config),
            tensors=[
                TensorReport(name=rule.source, shape=tensor.shape, chunks=tensor.chunk_shape)
                for rule, tensor in zip(TENSOR_MAP, tensors, strict=True)
            ],
        )


def inspect_checkpoint(folder: Path, *, check: bool) -> CheckpointReport:
    """Check a checkpoint's headers and, with `check`, the hash of every file, and report on it.

    Raises `NemotronError` if a file is missing or does not match the manifest.
    """
    manifest = read_manifest(folder)
    if manifest.format == "trtllm":
        Checkpoint.open(folder)
    if check:
        require_unchanged(folder, manifest)
    return CheckpointReport(
        checkpoint=str(folder),
        source=manifest.source,
        format=manifest.format,
        dtype=manifest.dtype,
        tp=manifest.tp,
        pp=manifest.pp,
        bytes=sum(entry.size for entry in manifest.files.values()),
        files=len(manifest.files),
        hash=manifest.content_hash,
        checked=check,
    )


def _format_shape(shape: tuple[int, ...]) -> str:
    """Return a shape as text.

    >>> _format_shape((96, 256))
    '96×256'
    """
    return "×".join(map(str, shape))


def _facts_table(facts: Mapping[str, object]) -> Table:
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), f"{value:,}" if type(value) is int else str(value))
    return table
