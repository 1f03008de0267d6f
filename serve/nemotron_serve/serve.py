"""`nemotron serve`: one engine on one Triton server, until a signal stops it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

from nemotron_build.engine_folder import EngineRecord, check_versions, open_engine
from nemotron_build.lanes import lane_of
from nemotron_build.profile import Profile, load_profile
from nemotron_core.errors import NemotronError
from nemotron_core.family import LARGEST, aliases
from nemotron_core.files import write_atomically
from nemotron_core.launcher import own_rank
from nemotron_serve.engine_process import engine_command
from nemotron_serve.exposure import exposure
from nemotron_serve.gateway import Gateway, check_gateway
from nemotron_serve.health import Health
from nemotron_serve.hosts import check_hosts, wait_until_known
from nemotron_serve.model_server import ModelServer, ServerOptions
from nemotron_serve.options import ServeOptions
from nemotron_serve.ports import Endpoints
from nemotron_serve.ranks import EngineLaunch, become_worker, check_launch, engine_launch
from nemotron_serve.triton import DRAIN, STOP_SIGNALS
from nemotron_serve.user_command import UserCommand, check_command
from nemotron_serve.welcome import FrontEnd, welcome

CHECK_SECONDS = 1.0
"""Time between two checks of Triton and of the gateway."""
POLL_SECONDS = 0.02


def serve(options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM, then drain.

    A second SIGINT, or a signal before the server is ready, stops it at once. With a command, serve
    until the command has ended. If a launcher started this process as one of an engine's ranks,
    only the first one serves, and the others compute for its engine or end.

    Raises `NemotronError` if the engine or a port cannot be used, or if the engine or Triton ends
    and cannot be started again. Raises `CommandFailed` if the command failed.
    """
    record = open_engine(options.engine)
    profile = choose_profile(record, options)
    lane = lane_of(profile)
    model = record.model or LARGEST
    own_names = {model, *aliases(model)}
    if taken := own_names & options.adapters.keys():
        raise NemotronError(
            f"{taken.pop()!r} is the model's own name",
            where="--adapter",
            remedy="give the adapter another one",
        )
    if options.engine_socket is not None and options.adapters:
        raise NemotronError(
            "the engine's process has its own adapters",
            where="--adapter",
            remedy="start that process with --lora NAME=FOLDER",
        )
    if options.engine_socket is None:
        check_versions(options.engine, record, profile)
        lane.check_machine(profile)
    check_gateway(profile, options.gateway_settings)
    check_command(options.command or ())
    deployment = lane.deployment(profile)
    place, hosts = own_rank(), options.host_names
    launch = EngineLaunch()
    if options.engine_socket is None:
        launch = engine_launch(deployment, place, hosts)
    if place is not None and place[0] > 0:
        if launch.is_rank:
            no_socket = Path(os.devnull)  # only the first one listens
            command = engine_command(profile, options.engine, no_socket, options.adapters)
            become_worker(deployment, launch, command)
        return
    check_launch(deployment, launch)
    if (warning := exposure(deployment, profile.address)) is not None:
        print(f"nemotron: warning: {warning}", file=sys.stderr, flush=True)
    signals = Signals()
    if hosts:
        check_hosts(deployment, hosts)
        wait_until_known(hosts, profile.timeouts.startup, signals.stop)
    server_options = ServerOptions(
        log_file=options.log_file,
        traces=options.traces,
        engine_socket=options.engine_socket,
        launch=launch,
        adapters=options.adapters,
        free_ports=options.free_ports,
    )
    with ModelServer(options.engine, profile, server_options, signals.stop) as server:
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
    update: dict[str, object] = {"ports": profile.ports.model_copy(update=options.ports)}
    if options.address is not None:
        update["address"] = options.address
    return profile.model_copy(update=update)


class Signals:
    """Signal handlers: the first signal sets `stop`, a second Ctrl-C interrupts a ready server.

    Only Ctrl-C is impatience: a batch system may send SIGTERM after its warning, and twice.
    """

    def __init__(self) -> None:
        self.ready = False
        self.stop = threading.Event()
        for number in (*STOP_SIGNALS, DRAIN):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.stop.is_set() and self.ready and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop.set()


def _serve(server: ModelServer, profile: Profile, signals: Signals, options: ServeOptions) -> None:
    endpoints = server.endpoints
    has_worked = threading.Event()

    def is_ready() -> bool:
        return has_worked.is_set() and server.is_working and not signals.stop.is_set()

    with Health(endpoints.address, endpoints.health, is_ready), ExitStack() as stack:
        try:
            _wait_until_it_works(server, profile)
            gateway = None
            if endpoints.gateway is not None:
                gateway = stack.enter_context(
                    Gateway(
                        options.engine,
                        profile,
                        endpoints,
                        folder=server.scratch,
                        engine_socket=server.engine_socket,
                        settings=options.gateway_settings,
                        model=open_engine(options.engine).model,
                    )
                )
                endpoints = replace(endpoints, gateway=gateway.port)
            has_worked.set()
            if options.port_file is not None:
                _write_port_file(options.port_file, endpoints)
            front = FrontEnd(gateway.model, needs_key=gateway.needs_key) if gateway else None
            _say(welcome(options.engine, profile, endpoints, server.kind, front))
            command = None
            if options.command:
                command = stack.enter_context(UserCommand(options.command, endpoints))
            while not signals.stop.wait(CHECK_SECONDS):
                if command is not None and command.has_ended:
                    break
                _check(server, gateway, options)
            server.refuse_new()
            _say("draining: running requests may finish; Ctrl-C ends them at once")
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
    _say("stopped")


def _check(server: ModelServer, gateway: Gateway | None, options: ServeOptions) -> None:
    """Mend what has failed. Raises `NemotronError` if that is not possible."""
    try:
        with suppress(KeyboardInterrupt):  # asked to stop while Triton was starting again
            server.check()
        if gateway is not None:
            gateway.check()
    except NemotronError as error:
        log = options.log_file
        remedy = None if log else "see the server's log with --log-file"
        raise NemotronError(str(error), where=log, remedy=remedy) from error


def _wait_until_it_works(server: ModelServer, profile: Profile) -> None:
    """Wait until each text model has answered. Raises `NemotronError` after `timeouts.startup`."""
    deadline = time.monotonic() + profile.timeouts.startup
    while not server.has_answered():
        server.check()
        if time.monotonic() > deadline:
            raise NemotronError("the models do not answer")
        time.sleep(POLL_SECONDS)


def _say(text: str) -> None:
    """Print a text. A reader that has ended, as `tee` after Ctrl-C, must not end the server."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_port_file(path: Path, endpoints: Endpoints) -> None:
    content = {"host": socket.gethostname(), "pid": os.getpid(), **asdict(endpoints)}
    write_atomically(path, json.dumps(content) + "\n")
