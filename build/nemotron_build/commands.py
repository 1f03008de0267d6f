"""The verbs `build` and `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(
    checkpoint: Annotated[Path, typer.Argument(help="A folder from `nemotron convert`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The engine: a new folder.")],
    profile: Annotated[str, typer.Option(help="Name of a shipped profile, or a .yaml.")],
) -> None:
    """Build an engine from a checkpoint."""
    from nemotron_build.engine import build_engine
    from nemotron_build.profile import load_profile

    record = build_engine(checkpoint, output, load_profile(profile))
    size = sum(entry.size for entry in record.files.values())
    typer.echo(f"{output}: {size:,} bytes, lane {record.lane}, {record.profile.dtype}")


def serve(
    engine: Annotated[Path, typer.Argument(help="A folder from `nemotron build`.")],
    profile: Annotated[
        str | None, typer.Option(help="Serve with another profile than the engine was built with.")
    ] = None,
    http_port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: a free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: a free one.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: a free one.")
    ] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="Written when ready: the ports and the process, as JSON.")
    ] = None,
    log_file: Annotated[Path | None, typer.Option(help="Triton's log.")] = None,
) -> None:
    """Serve an engine on Triton until Ctrl-C or SIGTERM, which let running requests finish."""
    from nemotron_build.serve import serve as run

    run(
        engine,
        profile=profile,
        ports={"http": http_port, "grpc": grpc_port, "metrics": metrics_port},
        port_file=port_file,
        log_file=log_file,
    )
