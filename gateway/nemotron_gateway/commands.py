"""The command `nemotron gateway`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def gateway(
    triton: Annotated[str | None, typer.Option(help="host:port of Triton's HTTP.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Address to listen on; 127.0.0.1 if left out.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port to listen on; 1424 if left out, 0 for a free one."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Path of tokenizer.model, if Triton is on another machine.")
    ] = None,
    engine_socket: Annotated[
        Path | None, typer.Option(help="Socket of the engine's process, for its LoRA adapters.")
    ] = None,
    api_keys_file: Annotated[
        Path | None,
        typer.Option(help="File with an API key in each line; else NEMOTRON_API_KEYS(_FILE)."),
    ] = None,
    files: Annotated[
        Path | None, typer.Option(help="Folder for files and batches, which are off without one.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="YAML file of settings, which the options override.")
    ] = None,
    request_timeout: Annotated[
        float | None, typer.Option(help="Seconds for one request, including its time in the queue.")
    ] = None,
    drain_timeout: Annotated[
        float | None, typer.Option(help="Seconds for running requests to finish after SIGTERM.")
    ] = None,
    access_log: Annotated[
        bool | None,
        typer.Option("--access-log/--no-access-log", help="One line of JSON per request."),
    ] = None,
    served_model: Annotated[
        str | None,
        typer.Option(help="Name of the model, and of its aliases, unless the settings have one."),
    ] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="File that receives the port, as JSON, once it listens.")
    ] = None,
) -> None:
    """Serve OpenAI's API, the model card's `PUT /generate` and a chat page, in front of Triton."""
    from nemotron_gateway.keys import Keys
    from nemotron_gateway.server import serve
    from nemotron_gateway.settings import load_settings

    gateway_settings = load_settings(
        settings,
        {
            "triton": triton,
            "address": address,
            "port": port,
            "tokenizer": tokenizer,
            "engine_socket": engine_socket,
            "api_keys_file": api_keys_file,
            "files.folder": files,
            "access_log": access_log,
            "timeouts.request": request_timeout,
            "timeouts.drain": drain_timeout,
        },
        served_model,
    )
    serve(gateway_settings, Keys.configured(gateway_settings.api_keys_file), port_file)
