"""The verbs `plan`, `build`, `serve` and `doctor`."""

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
    from nemotron_build.engine_folder import build_engine, reuse_or_build
    from nemotron_build.profile import load_profile
    from nemotron_core.folder import when_possible
    from nemotron_serve.dry_run import describe_build

    if dry_run:
        typer.echo(describe_build(checkpoint, output, load_profile(profile)))
        return
    run, chosen = reuse_or_build if reuse else build_engine, load_profile(profile)
    record = when_possible(lambda: run(checkpoint, output, chosen), wait)
    size = sum(entry.size for entry in record.files.values())
    typer.echo(f"{output}: {size:,} bytes, lane {record.lane}, {record.profile.dtype}")


def serve(
    engine: Annotated[Path, typer.Argument(help="A folder from `nemotron build`.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND…]",
            help="Run when the server is ready; its end is the server's, its exit code too.",
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Serve with another profile than the engine was built with.")
    ] = None,
    http_port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: a free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: a free one.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: a free one.")
    ] = None,
    health_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: a free one.")
    ] = None,
    gateway_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: a free one.")
    ] = None,
    gateway: Annotated[
        bool, typer.Option("--gateway/--no-gateway", help="The HTTP gateway beside Triton.")
    ] = True,
    port_file: Annotated[
        Path | None, typer.Option(help="Written when ready: where the server listens, as JSON.")
    ] = None,
    log_file: Annotated[Path | None, typer.Option(help="Triton's log.")] = None,
    hosts: Annotated[
        str | None,
        typer.Option(
            metavar="HOST,…",
            help="Of an engine on several nodes, this one first; mpirun reaches the others by ssh.",
        ),
    ] = None,
    traces: Annotated[
        str | None, typer.Option(help="URL of an OpenTelemetry collector (OTLP over HTTP).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the commands and the files.")
    ] = False,
) -> None:
    """Serve an engine on Triton until Ctrl-C or SIGTERM, which let running requests finish."""
    from nemotron_build.engine_folder import open_engine
    from nemotron_serve.dry_run import describe_serve
    from nemotron_serve.serve import ServeOptions, choose_profile
    from nemotron_serve.serve import serve as run

    options = ServeOptions(
        engine=engine,
        profile=profile,
        ports={
            "http": http_port,
            "grpc": grpc_port,
            "metrics": metrics_port,
            "health": health_port,
            "gateway": gateway_port,
        },
        gateway=gateway,
        port_file=port_file,
        log_file=log_file,
        traces=traces,
        command=tuple(command or ()),
        hosts=tuple(hosts.split(",")) if hosts else (),
    )
    if dry_run:
        record = open_engine(engine, here=False)
        chosen = choose_profile(record, options)
        typer.echo(describe_serve(engine, record, chosen, options.arguments(), options.hosts))
    else:
        run(options)


def doctor(
    profile: Annotated[
        str | None, typer.Option(help="Name of a shipped profile, or a .yaml.")
    ] = None,
    engine: Annotated[
        Path | None, typer.Argument(help="An engine, whose own profile is meant.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check this machine against a profile, and say what to do."""
    import json
    from dataclasses import asdict

    from nemotron_build.engine_folder import open_engine
    from nemotron_build.profile import load_profile
    from nemotron_serve.doctor import examine

    if (profile is None) == (engine is None):
        raise typer.BadParameter("name an engine or a profile")
    chosen = open_engine(engine, here=False).profile if engine else load_profile(str(profile))
    findings = examine(chosen)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{'ok    ' if finding.ok else 'FAILED'}  {finding.what}: {finding.text}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
