"""`nemotron serve`: one engine on one Triton, until someone says stop."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from rich.console import Console

from nemotron_build.engine import open_engine
from nemotron_build.profile import Profile, load_profile
from nemotron_build.server import Endpoints, TritonServer
from nemotron_convert.errors import NemotronError

EXAMPLE_QUESTION = "Who are you?"


def serve(
    engine: Path,
    *,
    profile: str | None,
    ports: Mapping[str, int | None],
    port_file: Path | None,
    log_file: Path | None,
) -> None:
    """Serve until SIGINT or SIGTERM, then drain; a second signal, or one before, ends at once.

    NemotronError if the engine or a port cannot be used, or if Triton ends by itself.
    """
    record = open_engine(engine)
    chosen = load_profile(profile) if profile else record.profile
    if chosen.lane != record.lane:
        raise NemotronError(
            f"the profile is for the lane {chosen.lane!r}, the engine for {record.lane!r}",
            where="--profile",
        )
    chosen = _with_ports(chosen, ports)
    signals = _Signals()
    console = Console(highlight=False)
    with TritonServer(engine, chosen, log_file=log_file, give_up=signals.stop) as server:
        signals.ready = True
        if port_file is not None:
            _write_port_file(port_file, server.endpoints)
        try:
            console.print(_welcome(engine, server.endpoints), soft_wrap=True)
            while not signals.stop.wait(0.2):
                if server.process.poll() is not None:
                    raise NemotronError(
                        f"Triton ended with status {server.process.returncode}",
                        where=server.log if log_file else None,
                        remedy=None if log_file else "see its log with --log-file",
                    )
            console.print("draining: running requests may finish; signal again to end at once")
            server.stop()
        finally:
            if port_file is not None:
                port_file.unlink(missing_ok=True)
    console.print("stopped")


class _Signals:
    """SIGINT and SIGTERM ask to stop; a second one interrupts, once there is a server to leave."""

    def __init__(self) -> None:
        self.ready = False
        self.stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.stop.is_set() and self.ready:
            raise KeyboardInterrupt
        self.stop.set()


def _with_ports(profile: Profile, ports: Mapping[str, int | None]) -> Profile:
    given = {name: port for name, port in ports.items() if port is not None}
    return profile.model_copy(update={"ports": profile.ports.model_copy(update=given)})


def _write_port_file(path: Path, endpoints: Endpoints) -> None:
    text = json.dumps(
        {
            "pid": os.getpid(),
            "http": endpoints.http,
            "grpc": endpoints.grpc,
            "metrics": endpoints.metrics,
        }
    )
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=path) from error


def _welcome(engine: Path, ends: Endpoints) -> str:
    body = {
        "messages": json.dumps([{"role": "user", "content": EXAMPLE_QUESTION}]),
        "max_tokens": 100,
    }
    http = f"http://{ends.address}:{ends.http}"
    curl = ["curl", f"{http}/v2/models/ensemble/generate", "-d", json.dumps(body)]
    chat = ["nemotron", "chat", "--url", f"{ends.address}:{ends.grpc}", EXAMPLE_QUESTION]
    return "\n".join(
        [
            f"{engine} is ready; Ctrl-C drains and stops.",
            f"  gRPC     {ends.address}:{ends.grpc}",
            f"  HTTP     {http}",
            f"  metrics  http://{ends.address}:{ends.metrics}/metrics",
            "Try it:",
            f"  {shlex.join(chat)}",
            f"  {shlex.join(curl)}",
        ]
    )
