"""What a `.nemo` holds, for people and for programs."""

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
    """Shape of a tensor and of the chunks it was saved in, in elements."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]


class ModelReport(BaseModel):
    """The answer of `nemotron inspect`; its fields are the keys of `--json`."""

    source: str
    layout: str
    dtype: str
    parameters: int
    weight_bytes: int
    config: dict[str, int | float | bool | str]
    vocab_size: int
    allowed_tp: list[int]
    tensors: list[TensorReport]

    def print(self, console: Console) -> None:
        """As two tables."""
        facts = _facts(
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
            sizes = ("×".join(map(str, sizes)) for sizes in (tensor.shape, tensor.chunks))
            tensors.add_row(tensor.name, *sizes)
        console.print(facts)
        console.print()
        console.print(tensors)


class CheckpointReport(BaseModel):
    """The answer for a checkpoint folder."""

    checkpoint: str
    source: str
    format: str
    dtype: str
    tp: int
    pp: int
    bytes: int
    files: int
    hash: str
    checked: bool
    """Every file was read and is what the manifest says."""

    def print(self, console: Console) -> None:
        """As a table."""
        console.print(_facts(self.model_dump(exclude={"checkpoint"})))


def inspect(path: Path) -> ModelReport:
    """Read and check everything but the weights themselves; NemotronError if something is off."""
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
    """Check a checkpoint's headers and, with `check`, every byte; NemotronError if one is wrong."""
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


def _facts(values: Mapping[str, object]) -> Table:
    table = Table(show_header=False, box=None)
    for key, value in values.items():
        table.add_row(key.replace("_", " "), f"{value:,}" if type(value) is int else str(value))
    return table
