"""`nemotron serve`: one engine on one Triton server, until a signal stops it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from nemotron_build.engine_folder import EngineRecord, open_engine
from nemotron_build.lanes import lane_of
from nemotron_build.profile import Profile, load_profile
from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_core.launcher import own_rank
from nemotron_serve.gateway import Gateway, check_gateway
from nemotron_serve.health import CHECK_SECONDS, Health, Watch
from nemotron_serve.hosts import check_hosts, wait_until_known
from nemotron_serve.options import ServeOptions
from nemotron_serve.ranks import check_world, launch, launch_command, serve_rank
from nemotron_serve.server import Endpoints, TritonServer
from nemotron_serve.triton import DRAIN
from nemotron_serve.user_command import UserCommand, check_command

EXAMPLE_QUESTION = "Who are you?"
SIGNALS = (signal.SIGINT, signal.SIGTERM, DRAIN)
"""Signals that ask to stop."""


def serve(options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM, then drain.

    A second signal, or one before the server is ready, stops it at once. With a command, serve
    until the command has ended. If the engine has several ranks, start them all, or run as one of
    them if a launcher started this process as a rank. If a launcher started several processes for
    an engine with one rank, only the first one serves.

    Raises `NemotronError` if the engine or a port cannot be used, or if the engine, a rank or
    Triton ends by itself. Raises `CommandFailed` if the command failed.
    """
    record = open_engine(options.engine)
    profile = choose_profile(record, options)
    lane = lane_of(profile)
    lane.check_machine(profile)
    check_gateway(profile)
    check_command(options.command or ())
    deployment = lane.deployment(profile)
    is_split = deployment.ranks > 1
    place = own_rank()
    if place is not None:
        rank, size = place
        if is_split:
            check_world(deployment, size)
        if rank > 0:
            if is_split:
                for number in SIGNALS:
                    # The first rank drains, and the others end with it.
                    signal.signal(number, signal.SIG_IGN)
                serve_rank(rank, options.engine, record, profile)
            return
    signals = Signals()
    hosts = options.host_names
    if place is None and hosts:
        check_hosts(deployment, hosts)
        wait_until_known(hosts, profile.timeouts.startup, signals.stop)
    if place is None and is_split:
        signals.ready = True
        launch(launch_command(deployment, options.arguments(), hosts), signals.stop)
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
    """Return the engine's profile, or the one that the options name, with the options' ports.

    Raises `NemotronError` if the profile is for another lane than the engine.
    """
    profile = load_profile(options.profile) if options.profile else record.profile
    if profile.lane != record.lane:
        raise NemotronError(
            f"the profile is for the lane {profile.lane!r}, the engine for {record.lane!r}",
            where="--profile",
        )
    return profile.model_copy(update={"ports": profile.ports.model_copy(update=options.ports)})


class Signals:
    """Signal handlers: the first signal sets `stop`, a second one interrupts a ready server."""

    def __init__(self) -> None:
        self.ready = False
        self.stop = threading.Event()
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.stop.is_set() and self.ready:
            raise KeyboardInterrupt
        self.stop.set()


def _serve(server: TritonServer, profile: Profile, signals: Signals, options: ServeOptions) -> None:
    console = Console(highlight=False)
    endpoints = server.endpoints
    watch = Watch(server, profile)
    engine_works = threading.Event()

    def is_ready() -> bool:
        return engine_works.is_set() and not signals.stop.is_set()

    with Health(endpoints.address, endpoints.health, is_ready), ExitStack() as stack:
        try:
            _wait_until_it_works(watch, profile)
            gateway = None
            if endpoints.gateway is not None:
                gateway = stack.enter_context(Gateway(options.engine, profile, endpoints))
                endpoints = replace(endpoints, gateway=gateway.port)
            engine_works.set()
            if options.port_file is not None:
                _write_port_file(options.port_file, endpoints)
            console.print(_welcome(options.engine, endpoints), soft_wrap=True)
            command = None
            if options.command:
                command = stack.enter_context(UserCommand(options.command, endpoints))
            while not signals.stop.wait(CHECK_SECONDS):
                if command is not None and command.has_ended:
                    break
                failure = watch.failure() or (gateway.failure() if gateway else None)
                if failure is not None:
                    engine_works.clear()
                    raise NemotronError(
                        failure,
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
    """Wait until the engine answers. That Triton is ready only means that the models are loaded.

    Raises `NemotronError` if the engine fails, or does not answer within `timeouts.stall`.
    """
    deadline = time.monotonic() + profile.timeouts.stall
    while (failure := watch.failure()) is not None or not watch.has_worked:
        if failure is not None or time.monotonic() > deadline:
            raise NemotronError(failure or "the engine does not answer")


def _write_port_file(path: Path, endpoints: Endpoints) -> None:
    content = {"host": socket.gethostname(), "pid": os.getpid(), **asdict(endpoints)}
    write_atomically(path, json.dumps(content) + "\n")


def _welcome(engine: Path, endpoints: Endpoints) -> str:
    """Return the lines that say where the server listens and how to try it."""
    body = {
        "messages": json.dumps([{"role": "user", "content": EXAMPLE_QUESTION}]),
        "max_tokens": 100,
    }
    address = endpoints.address
    grpc, http = f"{address}:{endpoints.grpc}", f"http://{address}:{endpoints.http}"
    curl = ["curl", f"{http}/v2/models/ensemble/generate", "-d", json.dumps(body)]
    chat = ["nemotron", "chat", "--url", grpc, EXAMPLE_QUESTION]
    lines = [
        f"{engine} is ready; Ctrl-C drains and stops.",
        f"  gRPC     {grpc}",
        f"  HTTP     {http}",
    ]
    if endpoints.gateway:
        gateway = f"http://{address}:{endpoints.gateway}/v1"
        lines.append(f"  OpenAI   {gateway}, and a page to chat on at /")
    return "\n".join(
        [
            *lines,
            f"  metrics  http://{address}:{endpoints.metrics}/metrics",
            f"  health   http://{address}:{endpoints.health}/health/ready",
            "Try it:",
            f"  {shlex.join(chat)}",
            f"  {shlex.join(curl)}",
        ]
    )
