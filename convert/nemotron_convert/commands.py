"""The verbs `inspect`, `verify` and `convert` of the command `nemotron`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from nemotron_convert.arguments import ConvertArguments, base_and_adapters
from nemotron_core.command_options import takes

if TYPE_CHECKING:
    from nemotron_convert.options import Options


def inspect(
    model: Annotated[
        Path, Argument(metavar="MODEL|CHECKPOINT", help="The file or folder to inspect.")
    ],
    json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    check: Annotated[
        bool, Option("--check", help="Compare every file of a checkpoint with its hash.")
    ] = False,
    verbose: Annotated[
        bool, Option("--verbose", help="List settings and tensors that are not needed, too.")
    ] = False,
) -> None:
    """Show what a .nemo, a Hugging Face folder or a checkpoint holds, without its weights."""
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
    elif isinstance(report, inspection.ModelReport):
        report.print(Console(), verbose=verbose)
    else:
        report.print(Console())


def verify(
    checkpoint: Annotated[Path, Argument(metavar="CHECKPOINT", help="The checkpoint to verify.")],
    against: Annotated[
        list[Path],
        Option(
            metavar="MODEL",
            help="What it was converted from; with --base, each adapter in order.",
        ),
    ],
    base: Annotated[
        Path | None, Option(metavar="BASE.nemo", help="The model that adapters were merged into.")
    ] = None,
    ids: Annotated[
        Path | None,
        Option(metavar="IDS.json", help="Lists of token ids to run; by default, a few texts."),
    ] = None,
    json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a checkpoint, rank by rank, beside its source; exit with 1 if it is not safe to build.

    Under mpirun, the processes divide the ranks among them.
    """
    from rich.console import Console

    from nemotron_convert.team import open_team
    from nemotron_convert.verification.verifier import verify as run

    with open_team() as team:
        source, adapters = base_and_adapters(against, base, "--against")
        verification = run(checkpoint, source, adapters=adapters, ids=ids, team=team)
    if team.is_leader:
        if json:
            typer.echo(verification.to_json())
        else:
            verification.print(Console())
    if not verification.is_safe:
        raise typer.Exit(1)


@takes(ConvertArguments)
def convert(arguments: ConvertArguments) -> None:
    """Convert a .nemo or Hugging Face folder to a TensorRT-LLM checkpoint or a folder, BF16 or FP8.

    With --base, the adapters are merged into that model on the way; a P-tuning stands beside it.

    Under mpirun or srun, the processes divide the files among them.
    """
    # Adapters are merged by the threads that copy, so NumPy's products need none of their own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from contextlib import nullcontext

    from nemotron_convert.convert import convert as run
    from nemotron_convert.target.manifest import MANIFEST_NAME
    from nemotron_convert.team import open_team
    from nemotron_core.existing import replacing, require_choice
    from nemotron_core.files import partial_path
    from nemotron_core.folder import retry_until_ready

    if arguments.format == "peft":
        _convert_to_peft(arguments)
        return
    model, _ = base_and_adapters(arguments.models, arguments.base, "convert")
    output, options = arguments.output, conversion_options(arguments)
    must_be_new = not (options.resume or options.reuse or arguments.overwrite)
    if arguments.plan:
        from rich.console import Console

        from nemotron_convert.plan import make_plan

        if must_be_new:
            require_choice(output, MANIFEST_NAME, "checkpoint")
        conversion_plan = make_plan(model, output, options)
        if arguments.json:
            typer.echo(conversion_plan.to_json())
        else:
            conversion_plan.print(Console())
        conversion_plan.check()
        return
    with open_team() as team:
        if team.is_leader and must_be_new:
            require_choice(output, MANIFEST_NAME, "checkpoint", can_resume=True)
        is_replaced = arguments.overwrite and team.is_leader
        try:
            with replacing(output, MANIFEST_NAME) if is_replaced else nullcontext():
                team.barrier()
                manifest = retry_until_ready(
                    lambda: run(model, output, options, team=team),
                    arguments.wait if team.size == 1 else 0,
                )
        except KeyboardInterrupt:
            typer.echo(f"{partial_path(output)} is kept: --resume goes on from it", err=True)
            raise
    if team.is_leader:
        for name in manifest.nonfinite:
            typer.echo(f"warning: {name} holds NaN or Inf", err=True)
        if manifest.kv_cache_dtype == "fp8":
            typer.echo("warning: an FP8 KV cache costs this model accuracy; measure it", err=True)
        if arguments.json:
            typer.echo(manifest.model_dump_json(indent=2))
            return
        size = sum(entry.size for entry in manifest.files.values())
        split = f" TP={manifest.tp} PP={manifest.pp}" if manifest.format == "trtllm" else ""
        merged = ", ".join(adapter.file for adapter in manifest.adapters)
        with_adapters = f", {manifest.source} with {merged}" if merged else ""
        what = f"{manifest.format} {manifest.dtype}{split}{with_adapters}"
        typer.echo(f"{output}: {size:,} bytes, {what}")


def conversion_options(arguments: ConvertArguments) -> Options:
    """Return the conversion's options. Raises `NemotronError` if they contradict each other."""
    from nemotron_convert.calibration.options import CalibrationOptions
    from nemotron_convert.options import Options
    from nemotron_convert.shards import Parallel
    from nemotron_convert.target.layout import Dtype, Format, Precision
    from nemotron_core.errors import NemotronError

    if arguments.overwrite and (arguments.resume or arguments.reuse):
        raise NemotronError("give --overwrite, --resume or --reuse, not two of them")
    if arguments.dtype == "bf16" and (
        arguments.calibrate or arguments.calibrate_ids or arguments.scales
    ):
        raise NemotronError("there is nothing to calibrate in BF16", remedy="add --dtype fp8")
    return Options(
        Parallel(arguments.tp or (8 if arguments.format == "trtllm" else 1), arguments.pp),
        Format(arguments.format),
        arguments.jobs,
        resume=arguments.resume or arguments.reuse,
        reuse=arguments.reuse,
        strict=arguments.strict,
        ignore=tuple(arguments.ignore_tensor or ()),
        ignore_template=arguments.ignore_template,
        adapters=base_and_adapters(arguments.models, arguments.base, "convert")[1],
        precision=Precision(Dtype(arguments.dtype), Dtype(arguments.kv_cache_dtype)),
        calibration=CalibrationOptions(
            scales=arguments.scales,
            texts=arguments.calibrate,
            ids=arguments.calibrate_ids,
            length=arguments.calibrate_length,
            devices=arguments.devices,
            memory=int(min(arguments.calibrate_memory * 1e9, sys.maxsize)),
        ),
    )


def _convert_to_peft(arguments: ConvertArguments) -> None:
    from contextlib import nullcontext

    from nemotron_convert.convert import convert_to_peft
    from nemotron_convert.target.manifest import MANIFEST_NAME
    from nemotron_convert.team import open_team
    from nemotron_core.existing import replacing

    arguments.require_peft()
    with open_team() as team:
        if not team.is_leader:
            return
        with replacing(arguments.output, MANIFEST_NAME) if arguments.overwrite else nullcontext():
            manifest = convert_to_peft(arguments.models[0], arguments.output, arguments.base)
    if arguments.json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    typer.echo(f"{arguments.output}: peft {manifest.dtype}, {manifest.adapters[0].details}")
