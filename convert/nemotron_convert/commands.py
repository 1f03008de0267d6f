"""The verbs `inspect` and `convert`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Nemo = Annotated[Path, typer.Argument(metavar="MODEL.nemo", help="A .nemo: file or folder.")]


def inspect(
    model: Nemo,
    json: Annotated[bool, typer.Option("--json", help="For a program to read.")] = False,
) -> None:
    """Show what a .nemo holds, and check it without reading the weights."""
    from rich.console import Console

    from nemotron_convert import inspect as inspection

    report = inspection.inspect(model)
    if json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        inspection.print_report(report, Console())


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
