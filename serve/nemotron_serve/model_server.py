"""One engine on one Triton server: both processes, the watch over them, their restarts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from nemotron_build.engine_folder import open_engine
from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_serve.engine_process import EngineProcess, EngineStart, engine_command
from nemotron_serve.model_watch import ModelWatch
from nemotron_serve.ports import choose_ports
from nemotron_serve.ranks import EngineLaunch
from nemotron_serve.repository import ServerFiles, render_repository
from nemotron_serve.scratch import scratch_folder
from nemotron_serve.server import TritonServer

MAX_RESTARTS = 10
RESTART_SECONDS = 60.0
"""Triton is started again at most `MAX_RESTARTS` times in so many seconds."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server differs from what its profile says."""

    log_file: Path | None = None
    """File for the logs of Triton and of the engine. `None` means a temporary one."""
    traces: str | None = None
    """URL of an OpenTelemetry collector."""
    engine_socket: Path | None = None
    """Socket of an engine that others have started."""
    free_ports: bool = False
    """Whether another port is taken in place of one that is in use."""
    launch: EngineLaunch = field(default_factory=EngineLaunch)
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Folders of the LoRA adapters that the engine loads, by their names."""


class ModelServer:
    """A server, as a context manager that leaves nothing behind.

    Entering returns when the engine is loaded and every Triton model is ready. Raises
    `KeyboardInterrupt` if `give_up` is set before. Raises `NemotronError` if a port is in use, or
    if the engine or Triton does not start.
    """

    def __init__(
        self,
        engine: Path,
        profile: Profile,
        options: ServerOptions = ServerOptions(),
        give_up: threading.Event | None = None,
    ) -> None:
        self._folder = engine
        self._profile = profile
        self._options = options
        self._give_up = give_up or threading.Event()
        self._cleanup = ExitStack()
        self._watch_stack = ExitStack()
        self._restarts: list[float] = []
        self._is_restarting = False

    def __enter__(self) -> ModelServer:
        with ExitStack() as stack:
            self.endpoints = choose_ports(self._profile, take_free=self._options.free_ports)
            self.scratch = scratch = stack.enter_context(scratch_folder())
            self.log = self._options.log_file or scratch / "server.log"
            self._truncate_log()
            self.engine_socket = self._options.engine_socket or scratch / "engine.sock"
            files = ServerFiles(scratch, self.engine_socket)
            self.engine = stack.enter_context(
                EngineProcess(self._engine_start(files), self._give_up)
            )
            record = open_engine(self._folder)
            self.kind = record.kind
            render_repository(self._folder, record, self._profile, files)
            self.triton = stack.enter_context(
                TritonServer(
                    self.engine,
                    files,
                    self._profile,
                    endpoints=self.endpoints,
                    log=self.log,
                    give_up=self._give_up,
                    traces=self._options.traces,
                )
            )
            stack.push(self._watch_stack)
            self._watch()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cleanup.__exit__(error_type, error, traceback)

    @property
    def is_working(self) -> bool:
        """Whether the engine works, and Triton with it."""
        return self.engine.is_working and not self._is_restarting

    def has_answered(self) -> bool:
        """Return whether each text model has answered once."""
        return self._models.has_answered

    def check(self) -> None:
        """Start Triton again if a part of it has failed.

        Raises `NemotronError` if that happens too often, or if the engine is lost for good.
        """
        if (failure := self.engine.failure) is not None:
            raise NemotronError(failure)
        if (failure := self._models.failure()) is None:
            return
        now = time.monotonic()
        self._restarts = [then for then in self._restarts if now - then < RESTART_SECONDS]
        if len(self._restarts) >= MAX_RESTARTS:
            raise NemotronError(f"{failure}, and Triton was started {MAX_RESTARTS} times already")
        self._restarts.append(now)
        self._is_restarting = True
        self._watch_stack.close()
        self.triton.restart()
        self._watch()
        self._is_restarting = False

    def refuse_new(self) -> None:
        """Refuse new requests."""
        self.triton.refuse_new()

    def stop(self) -> None:
        """Let running requests finish within `timeouts.drain`, and stop Triton."""
        self._watch_stack.close()
        self.triton.stop()

    def _watch(self) -> None:
        self._models = self._watch_stack.enter_context(
            ModelWatch(self.triton, self.engine.answers, self.kind)
        )

    def _engine_start(self, files: ServerFiles) -> EngineStart:
        options, timeouts = self._options, self._profile.timeouts
        command: list[str] = []
        if options.engine_socket is None:
            engine = engine_command(
                self._profile, self._folder, files.engine_socket, options.adapters
            )
            command = [*options.launch.prefix, *engine]
        return EngineStart(
            command=command,
            socket=files.engine_socket,
            tokenizer=self._folder / TOKENIZER_NAME,
            log=self.log,
            size=sum(entry.size for entry in open_engine(self._folder).files.values()),
            startup_seconds=timeouts.startup,
            stall_seconds=timeouts.stall,
            environment=self._engine_environment(files),
            keeps_rank=options.launch.keeps_rank,
            has_launcher=options.launch.ends_others,
            may_restart=not options.launch.is_rank,  # a launcher's processes begin only once
        )

    def _engine_environment(self, files: ServerFiles) -> dict[str, str]:
        """Return the variables of the engine's process. The library's launcher calls `python3`."""
        environment = {"TMPDIR": str(files.folder), **self._options.launch.environment}
        if (python := self._profile.engine.python) is not None:
            environment["PATH"] = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
        return environment

    def _truncate_log(self) -> None:
        try:
            self.log.write_bytes(b"")
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=self.log) from error
