"""The verbs `plan` and `build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    profile: Annotated[str, typer.Option(help="Name of a shipped profile, or a .yaml.")],
    gpu: Annotated[
        list[str] | None, typer.Option(help="Another GPU than the profile's; may be repeated.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A smaller model than Nemotron-4-340B.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a profile holds and how fast it can be at best."""
    import json

    from nemotron_build.plan import plans
    from nemotron_build.profile import load_profile

    found = plans(load_profile(profile), gpu or [], checkpoint)
    if as_json:
        typer.echo(json.dumps([one.as_dict() for one in found], indent=2))
    else:
        typer.echo("\n\n".join(map(str, found)))


def build(
    checkpoint: Annotated[Path, typer.Argument(help="A folder from `nemotron convert`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The engine: a new folder.")],
    profile: Annotated[str, typer.Option(help="Name of a shipped profile, or a .yaml.")],
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Take a finished engine of the same kind.")
    ] = False,
    wait: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to wait for others that write the engine, or with"
            " --reuse the checkpoint.",
        ),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the command and the files.")
    ] = False,
) -> None:
    """Build an engine from a checkpoint."""
    from nemotron_build.engine_folder import build_engine, describe_build, reuse_or_build
    from nemotron_build.profile import load_profile
    from nemotron_core.folder import when_possible

    if dry_run:
        typer.echo(describe_build(checkpoint, output, load_profile(profile)))
        return
    run, chosen = reuse_or_build if reuse else build_engine, load_profile(profile)
    record = when_possible(lambda: run(checkpoint, output, chosen), wait)
    size = sum(entry.size for entry in record.files.values())
    typer.echo(f"{output}: {size:,} bytes, lane {record.lane}, {record.profile.dtype}")
