"""`nemotron serve`: one engine on one Triton, until someone says stop."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from nemotron_build.engine_folder import EngineRecord, open_engine
from nemotron_build.lanes import LANES
from nemotron_build.profile import Profile, load_profile
from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_core.launcher import own_rank
from nemotron_serve.gateway import Gateway, check_gateway
from nemotron_serve.health import LOOK_SECONDS, Health, Watch
from nemotron_serve.hosts import check_hosts, wait_until_known
from nemotron_serve.ranks import (
    check_world,
    launch,
    launch_command,
    serve_rank,
    world_size,
)
from nemotron_serve.server import Endpoints, TritonServer
from nemotron_serve.triton import STOP
from nemotron_serve.user_command import UserCommand, check_command

EXAMPLE_QUESTION = "Who are you?"


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Of the verb `serve`; a port of None is the profile's."""

    engine: Path
    profile: str | None = None
    ports: Mapping[str, int | None]
    gateway: bool = True
    port_file: Path | None = None
    log_file: Path | None = None
    traces: str | None = None
    command: Sequence[str] = ()
    """To run while the server is up; without one it stays."""
    hosts: tuple[str, ...] = ()
    """Of the ranks, this machine first."""

    def arguments(self) -> list[str]:
        """The same on a command line, for each rank."""
        options: dict[str, object] = {
            "profile": self.profile,
            **{f"{name}-port": port for name, port in self.ports.items()},
            "port-file": self.port_file,
            "log-file": self.log_file,
            "traces": self.traces,
        }
        given = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
        without = [] if self.gateway else ["--no-gateway"]
        command = ["--", *self.command] if self.command else []
        return [str(self.engine), *(text for pair in given for text in pair), *without, *command]


def serve(options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM, then drain; a second signal, or one before, ends at once.

    With a command, serve until that has ended. Where the engine has several ranks, this starts them
    all, or is one of them if a launcher has started it so; of more processes than an engine of one
    has a use for, the first serves. NemotronError if the engine or a port cannot be used, or if the
    engine, a rank or Triton ends by itself. CommandFailed if the command failed.
    """
    record = open_engine(options.engine)
    profile = choose_profile(record, options)
    LANES[record.lane].check_machine(profile)
    check_gateway(profile)
    check_command(options.command)
    ranks, place = world_size(profile), own_rank()
    if place is not None:
        rank, size = place
        if ranks > 1:
            check_world(profile, size)
        if rank > 0:
            if ranks > 1:
                for number in (signal.SIGINT, signal.SIGTERM, STOP):
                    # The first rank drains, and all end with it.
                    signal.signal(number, signal.SIG_IGN)
                serve_rank(rank, options.engine, record, profile)
            return
    signals = Signals()
    if place is None and options.hosts:
        check_hosts(profile, options.hosts)
        wait_until_known(options.hosts, profile.timeouts.startup, signals.stop)
    if place is None and ranks > 1:
        signals.ready = True
        launch(launch_command(profile, options.arguments(), options.hosts), signals.stop)
        return
    with TritonServer(
        options.engine,
        profile,
        log_file=options.log_file,
        give_up=signals.stop,
        traces=options.traces,
    ) as server:
        signals.ready = True
        _serve(server, profile, signals, options)


def choose_profile(record: EngineRecord, options: ServeOptions) -> Profile:
    """The engine's own or another of its lane, with the ports that were given."""
    chosen = load_profile(options.profile) if options.profile else record.profile
    if chosen.lane != record.lane:
        raise NemotronError(
            f"the profile is for the lane {chosen.lane!r}, the engine for {record.lane!r}",
            where="--profile",
        )
    given: dict[str, int | None] = {
        name: port for name, port in options.ports.items() if port is not None
    }
    if not options.gateway:
        given["gateway"] = None
    return chosen.model_copy(update={"ports": chosen.ports.model_copy(update=given)})


class Signals:
    """SIGINT and SIGTERM ask to stop; a second one interrupts, once there is a server to leave."""

    def __init__(self) -> None:
        self.ready = False
        self.stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM, STOP):
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.stop.is_set() and self.ready:
            raise KeyboardInterrupt
        self.stop.set()


def _serve(server: TritonServer, profile: Profile, signals: Signals, options: ServeOptions) -> None:
    console = Console(highlight=False)
    ends = server.endpoints
    watch = Watch(server, profile)
    works = threading.Event()

    def is_ready() -> bool:
        return works.is_set() and not signals.stop.is_set()

    with Health(ends.address, ends.health, is_ready), ExitStack() as stack:
        try:
            _wait_until_it_works(watch, profile)
            gateway = None
            if ends.gateway is not None:
                gateway = stack.enter_context(Gateway(options.engine, profile, ends))
                ends = replace(ends, gateway=gateway.port)
            works.set()
            if options.port_file is not None:
                _write_port_file(options.port_file, ends)
            console.print(_welcome(options.engine, ends), soft_wrap=True)
            command = None
            if options.command:
                command = stack.enter_context(UserCommand(options.command, ends))
            while not signals.stop.wait(LOOK_SECONDS):
                if command is not None and command.has_ended:
                    break
                why = watch.look() or (gateway.why_ended() if gateway else None)
                if why is not None:
                    works.clear()
                    raise NemotronError(
                        why,
                        where=server.log if options.log_file else None,
                        remedy=None if options.log_file else "see Triton's log with --log-file",
                    )
            server.refuse_new()
            console.print("draining: running requests may finish; signal again to end at once")
            if command is not None:
                command.ask_to_stop()
            if gateway is not None:
                gateway.drain()
            server.stop()
            if gateway is not None:
                gateway.wait()
            if command is not None:
                command.finish()
        finally:
            if options.port_file is not None:
                options.port_file.unlink(missing_ok=True)
    console.print("stopped")


def _wait_until_it_works(watch: Watch, profile: Profile) -> None:
    """Triton says that it is ready when all models are loaded; whether they answer is seen here."""
    deadline = time.monotonic() + profile.timeouts.stall
    while (why := watch.look()) is not None or not watch.has_worked:
        if why is not None or time.monotonic() > deadline:
            raise NemotronError(why or "the engine does not answer")


def _write_port_file(path: Path, endpoints: Endpoints) -> None:
    text = json.dumps(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "address": endpoints.address,
            "http": endpoints.http,
            "grpc": endpoints.grpc,
            "metrics": endpoints.metrics,
            "health": endpoints.health,
            "gateway": endpoints.gateway,
        }
    )
    write_atomically(path, text + "\n")


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
            *(
                [f"  OpenAI   http://{ends.address}:{ends.gateway}/v1, and a page to chat on at /"]
                if ends.gateway
                else []
            ),
            f"  metrics  http://{ends.address}:{ends.metrics}/metrics",
            f"  health   http://{ends.address}:{ends.health}/health/ready",
            "Try it:",
            f"  {shlex.join(chat)}",
            f"  {shlex.join(curl)}",
        ]
    )
