"""The options of `nemotron serve` and `nemotron try`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from nemotron_core.errors import NemotronError

Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Instead of the profile's port. 0: a free one.")
]
PORTS = ("http", "grpc", "metrics", "health", "gateway")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of `nemotron serve`. A port of `None` means the profile's port."""

    engine: Annotated[Path, typer.Argument(help="Engine folder, written by `nemotron build`.")]
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND…]",
            help="Command to run when the server is ready. The server stops when the command ends,"
            " with the command's exit code.",
        ),
    ] = None
    profile: Annotated[
        str | None, typer.Option(help="Profile to serve with, instead of the build's profile.")
    ] = None
    address: Annotated[
        str | None, typer.Option(help="Address to listen on, instead of the profile's.")
    ] = None
    http_port: Port = None
    grpc_port: Port = None
    metrics_port: Port = None
    health_port: Port = None
    gateway_port: Port = None
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Take other ports in place of those in use.")
    ] = False
    gateway: Annotated[
        bool, typer.Option("--gateway/--no-gateway", help="Start the HTTP gateway beside Triton.")
    ] = True
    gateway_settings: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of the gateway's settings; the profile's ports and times count."
        ),
    ] = None
    port_file: Annotated[
        Path | None, typer.Option(help="File to write when ready: address and ports, as JSON.")
    ] = None
    log_file: Annotated[Path | None, typer.Option(help="File for Triton's log.")] = None
    hosts: Annotated[
        str | None,
        typer.Option(
            metavar="HOST,…",
            help="Machines of an engine on several nodes, beginning with this one. mpirun reaches"
            " the others by ssh.",
        ),
    ] = None
    engine_socket: Annotated[
        Path | None,
        typer.Option(help="Socket of an engine's process that is started elsewhere."),
    ] = None
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="LoRA adapter in PEFT's layout, served to requests for the model NAME; once for"
            " each. The profile's `lora` has room for them.",
        ),
    ] = None
    traces: Annotated[
        str | None, typer.Option(help="URL of an OpenTelemetry collector (OTLP over HTTP).")
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands and the files, and start nothing.")
    ] = False

    @property
    def ports(self) -> dict[str, int | None]:
        """The ports by their names in the profile, without those that the profile decides."""
        options = {name: getattr(self, f"{name}_port") for name in PORTS}
        ports = {name: port for name, port in options.items() if port is not None}
        return ports if self.gateway else ports | {"gateway": None}

    @property
    def adapters(self) -> dict[str, Path]:
        """The folders of LoRA adapters by their names. Raises `NemotronError` if one is wrong."""
        adapters: dict[str, Path] = {}
        for text in self.adapter or ():
            name, _, folder = text.partition("=")
            if not name or not folder or name in adapters:
                raise NemotronError(
                    f"{text!r} is no new name with a folder",
                    where="--adapter",
                    remedy="use --adapter NAME=FOLDER, each name once",
                )
            adapters[name] = Path(folder)
        return adapters

    @property
    def host_names(self) -> list[str]:
        return self.hosts.split(",") if self.hosts else []


@dataclass(frozen=True, kw_only=True)
class TryOptions:
    """Options of `nemotron try`."""

    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A .nemo, a Hugging Face folder, or a repository in Hugging Face's cache.",
        ),
    ]
    profile: Annotated[str, typer.Option(help="Name of a shipped profile, or path of a .yaml.")] = (
        "laptop"
    )
    weights: Annotated[
        Literal["bf16", "int8", "int4"] | None,
        typer.Option(help="CPU lane: type of the weights in memory, instead of the profile's."),
    ] = None
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the page. 0: a free one.")
    ] = None
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would take, and do nothing.")
    ] = False
