"""The verbs `serve`, `try`, `clean` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nemotron_core.command_options import takes
from nemotron_serve.options import ServeOptions, TryOptions


@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve an engine on Triton until Ctrl-C or SIGTERM, which let running requests finish."""
    from nemotron_build.engine_folder import open_engine
    from nemotron_serve.dry_run import describe_serve
    from nemotron_serve.serve import choose_profile
    from nemotron_serve.serve import serve as run

    if not options.dry_run:
        run(options)
        return
    record = open_engine(options.engine)
    profile = choose_profile(record, options)
    typer.echo(
        describe_serve(options.engine, record, profile, options.host_names, options.adapters)
    )


@takes(TryOptions)
def try_model(options: TryOptions) -> None:
    """Convert, build and serve a model on this machine, and open a page to chat on.

    What it takes of disk and memory is printed first. A second call of the same model serves what
    the first one made.
    """
    from nemotron_serve.trial import try_model as run

    run(options)


def clean(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
) -> None:
    """Remove what `nemotron try` has made and kept."""
    from nemotron_serve.trial_cache import cached
    from nemotron_serve.trial_cache import clean as run

    for path, size in cached() if dry_run else run():
        typer.echo(f"{'would remove' if dry_run else 'removed'} {path}: {size:,} bytes")


def doctor(
    profile: Annotated[
        str | None, typer.Option(help="Name of a shipped profile, or path of a .yaml.")
    ] = None,
    engine: Annotated[
        Path | None, typer.Argument(help="Engine folder, whose profile is checked.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean", help="Remove what killed servers have left in TMPDIR and /dev/shm."
        ),
    ] = False,
) -> None:
    """Check whether this machine can serve a profile, and say what to do if not."""
    import json
    from dataclasses import asdict

    from nemotron_build.engine_folder import open_engine
    from nemotron_build.profile import load_profile
    from nemotron_serve.doctor import examine
    from nemotron_serve.scratch import remove_leftovers

    if clean:
        for path in remove_leftovers():
            typer.echo(f"removed {path}", err=as_json)
        if profile is None and engine is None:
            return
    if (profile is None) == (engine is None):
        raise typer.BadParameter("name an engine or a profile")
    chosen = open_engine(engine).profile if engine else load_profile(str(profile))
    findings = examine(chosen)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{'ok    ' if finding.ok else 'FAILED'}  {finding.what}: {finding.text}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
