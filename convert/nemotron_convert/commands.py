"""The verbs `inspect` and `convert`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Nemo = Annotated[Path, typer.Argument(metavar="MODEL.nemo", help="A .nemo: file or folder.")]


def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.nemo|CHECKPOINT", help="What to look at.")
    ],
    json: Annotated[bool, typer.Option("--json", help="For a program to read.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Of a checkpoint: read every file, compare its hash.")
    ] = False,
) -> None:
    """Show what a .nemo or a checkpoint holds, and check it without reading the weights."""
    from rich.console import Console

    from nemotron_convert import inspect as inspection
    from nemotron_convert.errors import NemotronError
    from nemotron_convert.manifest import MANIFEST_NAME

    report: inspection.CheckpointReport | inspection.ModelReport
    if (model / MANIFEST_NAME).is_file():
        report = inspection.inspect_checkpoint(model, check=check)
    elif check:
        raise NemotronError(f"no {MANIFEST_NAME}: only a checkpoint has hashes", where=model)
    else:
        report = inspection.inspect(model)
    if json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        report.print(Console())


def convert(
    model: Nemo,
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint: a new folder.")],
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks.")] = 8,
    pp: Annotated[int, typer.Option(min=1, help="Pipeline stages.")] = 1,
    jobs: Annotated[
        int, typer.Option(min=1, max=256, help="Threads that copy; each holds a few MiB.")
    ] = min(8, os.cpu_count() or 1),
) -> None:
    """Convert a .nemo to a BF16 TensorRT-LLM checkpoint."""
    from nemotron_convert.convert import convert as run
    from nemotron_convert.shards import Parallel

    manifest = run(model, output, Parallel(tp, pp), jobs=jobs)
    size = sum(entry.size for entry in manifest.files.values())
    typer.echo(f"{output}: {size:,} bytes, {manifest.dtype} TP={tp} PP={pp}")
