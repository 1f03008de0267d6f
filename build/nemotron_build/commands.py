"""The verbs `plan` and `build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from nemotron_core.family import LARGEST


def plan(
    profile: Annotated[str, typer.Option(help="Name of a shipped profile, or path of a .yaml.")],
    gpu: Annotated[
        list[str] | None, typer.Option(help="GPU to plan for instead of the profile's. Repeatable.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint to plan for.")] = None,
    model: Annotated[
        str, typer.Option(help="Model of the family to plan for, without a checkpoint.")
    ] = LARGEST,
    weights: Annotated[
        Literal["bf16", "int8", "int4"] | None,
        typer.Option(help="CPU lane: type of the weights in memory, instead of the profile's."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what fits on the GPUs of a profile, and how fast it can be at best."""
    import json

    from nemotron_build.plan import plans
    from nemotron_build.profile import load_profile, with_weights

    chosen = with_weights(load_profile(profile), weights)
    serving_plans = plans(chosen, gpu or [], checkpoint, model)
    if as_json:
        typer.echo(json.dumps([item.as_dict() for item in serving_plans], indent=2))
    else:
        typer.echo("\n\n".join(map(str, serving_plans)))


def build(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint folder, written by `nemotron convert`.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Engine folder to create.")],
    profile: Annotated[str, typer.Option(help="Name of a shipped profile, or path of a .yaml.")],
    weights: Annotated[
        Literal["bf16", "int8", "int4"] | None,
        typer.Option(help="CPU lane: type of the weights in memory, instead of the profile's."),
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Keep a complete engine of the same profile.")
    ] = False,
    wait: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to wait while another process writes the engine or, with --reuse, the"
            " checkpoint.",
        ),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command and the files, and build nothing.")
    ] = False,
) -> None:
    """Build an engine from a checkpoint."""
    from nemotron_build.engine_folder import build_engine, describe_build, reuse_or_build
    from nemotron_build.profile import load_profile, with_weights
    from nemotron_core.folder import retry_until_ready

    chosen = with_weights(load_profile(profile), weights)
    if dry_run:
        typer.echo(describe_build(checkpoint, output, chosen))
        return
    run = reuse_or_build if reuse else build_engine
    record = retry_until_ready(lambda: run(checkpoint, output, chosen), wait)
    size = sum(entry.size for entry in record.files.values())
    typer.echo(f"{output}: {size:,} bytes, lane {record.lane}, {record.profile.dtype}")
