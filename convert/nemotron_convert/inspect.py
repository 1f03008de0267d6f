"""What a `.nemo` holds, for people and for programs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from nemotron_convert.arrays import BF16_BYTES
from nemotron_convert.shards import allowed_tp
from nemotron_convert.source import Source
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


def print_report(report: ModelReport, console: Console) -> None:
    """The report as two tables."""
    facts = Table(show_header=False, box=None)
    facts.add_row("layout", f"{report.layout}, {report.dtype}")
    facts.add_row("parameters", f"{report.parameters:,}")
    facts.add_row("weights", f"{report.weight_bytes:,} bytes ({BF16_BYTES} per parameter)")
    facts.add_row("vocabulary", f"{report.vocab_size:,}")
    for key, value in report.config.items():
        facts.add_row(key.replace("_", " "), f"{value:,}" if type(value) is int else str(value))
    facts.add_row("allowed TP", ", ".join(map(str, report.allowed_tp)))
    tensors = Table("tensor", "shape", "chunks", box=None)
    for tensor in report.tensors:
        tensors.add_row(
            tensor.name, *("×".join(map(str, sizes)) for sizes in (tensor.shape, tensor.chunks))
        )
    console.print(facts)
    console.print()
    console.print(tensors)
