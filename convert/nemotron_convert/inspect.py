"""Reports on a `.nemo` and on a checkpoint, as tables and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemotron_convert.shards import allowed_tp
from nemotron_convert.source.kind import NOT_CONVERTED
from nemotron_convert.source.nemo import Contents, Source
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.manifest import read_manifest, require_unchanged


class TensorReport(BaseModel):
    """Shape of a tensor and of its stored chunks, in elements."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]


class ModelReport(BaseModel):
    """Report on a `.nemo`. The fields are the keys of `nemotron inspect --json`."""

    source: str
    kind: str
    convertible: bool
    """Whether `nemotron convert` takes it as it is."""
    layout: str
    """Name of the format in which the weights are stored."""
    dtype: str
    """Types in which the weights are stored."""
    parameters: int
    weight_bytes: int
    config: dict[str, int | float | bool | str]
    vocab_size: int
    allowed_tp: list[int]
    """Numbers of tensor-parallel ranks that the model can be split over."""
    tensors: list[TensorReport]
    """Tensors that are converted; empty if this kind cannot be."""
    unknown_tensors: dict[str, str]
    """Tensors that are not understood, with their types and shapes."""
    refused_settings: list[str]
    """Settings that change the arithmetic and are not carried out."""
    other_settings: dict[str, str]
    """Settings that do not matter to a finished model."""
    dropped_tensors: dict[str, str]
    """Tensors that are left out on purpose, with what they are."""

    def print(self, console: Console, *, verbose: bool = False) -> None:
        """Print a table of the model and tables of its tensors.

        With `verbose`, also print the settings and tensors that are not needed.
        """
        facts: dict[str, object] = {
            "kind": self.kind,
            "layout": f"{self.layout}, {self.dtype}",
            **self.config,
        }
        if self.tensors:
            facts |= {
                "parameters": self.parameters,
                "weights": f"{self.weight_bytes:,} bytes",
                "vocabulary": self.vocab_size,
                "allowed TP": ", ".join(map(str, self.allowed_tp)),
            }
        console.print(_facts_table(facts))
        if self.tensors:
            tensors = Table("tensor", "shape", "chunks", box=None)
            for row in self.tensors:
                tensors.add_row(row.name, _format_shape(row.shape), _format_shape(row.chunks))
            console.print("\n", tensors, sep="")
        _print_section(console, "refused: tensors that are not understood", self.unknown_tensors)
        faults = dict.fromkeys(self.refused_settings, "")
        _print_section(console, "refused: settings that are not carried out", faults)
        if verbose:
            _print_section(console, "tensors that are not needed", self.dropped_tensors)
            _print_section(console, "settings that are not needed", self.other_settings)


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

    Raises `NemotronError` if the `.nemo` cannot be read or is not consistent. What a conversion
    would refuse because it is not understood is in the report.
    """
    with Contents.open(path) as contents:
        settings, kind = contents.settings, contents.kind
        source = None if kind in NOT_CONVERTED else Source.of(contents, is_lenient=True)
        arrays = source.tensors if source else {}
        unknown = contents.unknown()
        return ModelReport(
            source=str(path),
            kind=kind.value,
            convertible=source is not None and not unknown and not settings.faults,
            layout=contents.layout,
            dtype=" and ".join(source.dtypes) if source else "",
            parameters=sum(math.prod(tensor.shape) for tensor in arrays.values()),
            weight_bytes=source.nbytes if source else 0,
            config=dataclasses.asdict(settings.model),
            vocab_size=source.vocab_size if source else 0,
            allowed_tp=allowed_tp(settings.model),
            tensors=[
                TensorReport(name=name, shape=tensor.shape, chunks=tensor.chunk_shape)
                for name, tensor in arrays.items()
            ],
            unknown_tensors=unknown,
            refused_settings=settings.faults,
            other_settings=settings.others,
            dropped_tensors=contents.dropped(),
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


def _print_section(console: Console, title: str, rows: Mapping[str, str]) -> None:
    """Print a title and a line for each row, unless there are none."""
    lines = [f"  {name}: {value}" if value else f"  {name}" for name, value in rows.items()]
    if lines:
        console.print(Text("\n".join(["", title, *lines])), soft_wrap=True)


def _facts_table(facts: Mapping[str, object]) -> Table:
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), f"{value:,}" if type(value) is int else str(value))
    return table
