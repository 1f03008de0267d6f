"""The verb `gateway`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def gateway(
    triton: Annotated[str | None, typer.Option(help="host:port of Triton's gRPC.")] = None,
    address: Annotated[str | None, typer.Option(help="Where to listen; 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="1424, the model card's; 0: a free one.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.model, if Triton's own is on another machine.")
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="One key a line; or NEMOTRON_API_KEYS(_FILE).")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="Everything that can be set, as YAML; options come first.")
    ] = None,
    request_timeout: Annotated[float | None, typer.Option(help="Seconds for one request.")] = None,
    drain_timeout: Annotated[
        float | None, typer.Option(help="Seconds that running requests have after SIGTERM.")
    ] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log/--no-access-log", help="JSON, on standard error.")
    ] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="Written when it listens: the port, as JSON.")
    ] = None,
) -> None:
    """OpenAI's API, the model card's `PUT /generate` and a chat page, in front of Triton."""
    from nemotron_gateway.server import serve
    from nemotron_gateway.settings import load_keys, load_settings

    chosen = load_settings(
        settings,
        {
            "triton": triton,
            "address": address,
            "port": port,
            "tokenizer": tokenizer,
            "api_keys_file": api_keys_file,
            "access_log": access_log,
            "timeouts.request": request_timeout,
            "timeouts.drain": drain_timeout,
        },
    )
    serve(chosen, load_keys(chosen), port_file)
