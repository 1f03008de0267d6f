"""The verbs `serve` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
