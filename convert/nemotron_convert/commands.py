"""The verbs `inspect`, `verify` and `convert`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

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
    from nemotron_convert.target.manifest import MANIFEST_NAME
    from nemotron_core.errors import NemotronError

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


def verify(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="What to check.")],
    against: Annotated[
        Path, typer.Option(metavar="MODEL.nemo", help="What it was converted from.")
    ],
    ids: Annotated[
        Path | None,
        typer.Option(metavar="IDS.json", help="Lists of token ids to run; else some texts."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For a program to read.")] = False,
) -> None:
    """Run a checkpoint, rank by rank, beside its .nemo; exit code 1 if it is not safe to build.

    Under mpirun each process runs its share of the ranks.
    """
    from rich.console import Console

    from nemotron_convert.team import open_team
    from nemotron_convert.verification.report import print_report, to_json
    from nemotron_convert.verification.verifier import verify as run

    with open_team() as team:
        found = run(checkpoint, against, ids=ids, team=team)
    if team.is_leader:
        if json:
            typer.echo(to_json(found))
        else:
            print_report(found, Console())
    if not found.is_safe:
        raise typer.Exit(1)


def convert(
    model: Nemo,
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint: a new folder.")],
    format: Annotated[
        Literal["trtllm", "hf"],
        typer.Option(help="A TensorRT-LLM checkpoint, or a Hugging Face folder."),
    ] = "trtllm",
    tp: Annotated[
        int | None, typer.Option(min=1, help="Tensor-parallel ranks, 8 if not given.")
    ] = None,
    pp: Annotated[int, typer.Option(min=1, help="Pipeline stages.")] = 1,
    jobs: Annotated[
        int, typer.Option(min=1, max=256, help="Threads that copy; each holds a few MiB.")
    ] = min(16, 2 * (os.cpu_count() or 1)),
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would be done, and whether it can be.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run was ended.")
    ] = False,
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse", help="Take a finished output of the same conversion; else as --resume."
        ),
    ] = False,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for another process that is at it.")
    ] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse NaN and Inf.")] = False,
    dtype: Annotated[
        Literal["bf16", "fp8"], typer.Option(help="Of the linear layers; FP8 needs scales.")
    ] = "bf16",
    kv_cache_dtype: Annotated[
        Literal["bf16", "fp8"],
        typer.Option(help="fp8 halves the KV cache, and costs this model accuracy."),
    ] = "bf16",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="TEXTS.jsonl",
            help='For FP8: lines {"text": …} or {"messages": […]}; bring what the model will see.',
        ),
    ] = None,
    calibrate_ids: Annotated[
        Path | None, typer.Option(metavar="IDS.json", help="The same as lists of token ids.")
    ] = None,
    calibrate_length: Annotated[
        int, typer.Option(min=1, help="Tokens that are taken of each text.")
    ] = 512,
    calibrate_memory: Annotated[
        float, typer.Option(min=0, help="GB of hidden states in memory; more go to the disk.")
    ] = 8,
    scales: Annotated[
        Path | None,
        typer.Option(metavar="CALIBRATION.json", help="For FP8: what an earlier run has found."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to calibrate: cpu, cuda.")] = "cpu",
) -> None:
    """Convert a .nemo to a TensorRT-LLM checkpoint or Hugging Face folder, in BF16 or FP8.

    Under mpirun or srun the files are shared out over the processes.
    """
    from rich.console import Console

    from nemotron_convert.calibration.calibrator import Scaling
    from nemotron_convert.convert import Options
    from nemotron_convert.convert import convert as run
    from nemotron_convert.plan import make_plan
    from nemotron_convert.shards import Parallel
    from nemotron_convert.target.layout import Dtype, Format, Precision
    from nemotron_convert.team import open_team
    from nemotron_core.errors import NemotronError
    from nemotron_core.files import partial_path
    from nemotron_core.folder import retry_until_ready

    parallel = Parallel(tp or (8 if format == "trtllm" else 1), pp)
    precision = Precision(Dtype(dtype), Dtype(kv_cache_dtype))
    memory = int(calibrate_memory * 1e9)
    scaling = Scaling(scales, calibrate, calibrate_ids, calibrate_length, device, memory)
    if precision.weights is Dtype.BF16 and (calibrate or calibrate_ids or scales):
        raise NemotronError("there is nothing to calibrate in BF16", remedy="add --dtype fp8")
    options = Options(
        parallel,
        Format(format),
        jobs,
        resume=resume or reuse,
        reuse=reuse,
        strict=strict,
        precision=precision,
        scaling=scaling,
    )
    if plan:
        made = make_plan(model, output, options)
        made.print(Console())
        made.check()
        return
    with open_team() as team:
        try:
            manifest = retry_until_ready(
                lambda: run(model, output, options, team=team), wait if team.size == 1 else 0
            )
        except KeyboardInterrupt:
            typer.echo(f"{partial_path(output)} is kept: --resume goes on from it", err=True)
            raise
    if team.is_leader:
        for name in manifest.nonfinite:
            typer.echo(f"warning: {name} holds NaN or Inf", err=True)
        if precision.kv_cache is Dtype.FP8:
            typer.echo("warning: an FP8 KV cache costs this model accuracy; measure it", err=True)
        size = sum(entry.size for entry in manifest.files.values())
        split = f" TP={parallel.tp} PP={parallel.pp}" if format == "trtllm" else ""
        typer.echo(f"{output}: {size:,} bytes, {manifest.format} {manifest.dtype}{split}")
