"""The engine's process: its start, its watch, its restarts, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError
from nemotron_core.launcher import without_launcher
from nemotron_core.safe_path import SAFE_PATH
from nemotron_engine.client import check_hello
from nemotron_engine.probe import Probe
from nemotron_engine.protocol import Hello
from nemotron_serve.loading import loading
from nemotron_serve.triton import EXIT_SECONDS, die_with_parent, log_lines, log_tail, shield

CHECK_SECONDS = 1.0
"""Time between two checks of a working engine."""
PROBE_SECONDS = 1.0
"""Time limit of each step of a check."""
WORK_SECONDS = 4.0
"""Time without a sign of work after which the engine does not count as working."""
FIRST_BACK_OFF = 1.0
LONGEST_BACK_OFF = 60.0
"""Limits in seconds of the pause before a start that follows a failed one; it doubles each time."""
MAX_FAILED_STARTS = 5
"""Number of failed starts in a row after which the server gives up."""
MESSAGE = "nemotron_engine: "
"""Beginning of the line with which the engine's process says why it ends."""


def engine_command(
    profile: Profile, engine: Path, socket: Path, adapters: Mapping[str, Path] | None = None
) -> list[str]:
    """Return the command of the engine's process, without a launcher.

    `adapters` are the folders of LoRA adapters, by the names that requests have for them.
    """
    loras = [f"--lora={name}={folder.resolve()}" for name, folder in (adapters or {}).items()]
    return [
        *(str(profile.engine.python or sys.executable), "-m", "nemotron_engine"),
        *("--lane", profile.lane, "--socket", str(socket), "--once"),
        *(*loras, str(engine.resolve())),
    ]


@dataclass(frozen=True, kw_only=True)
class EngineStart:
    """How to start an engine's process."""

    command: Sequence[str]
    """With the launcher in front, if there is one. Empty for an engine that others start."""
    socket: Path
    tokenizer: Path
    """Tokenizer that the engine must have too."""
    log: Path
    size: int = 0
    """Bytes of the engine's files, for the progress of loading them. 0 shows none."""
    startup_seconds: float
    stall_seconds: float
    """Time without a step after which a process counts as stuck and is replaced."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables besides those of this process."""
    keeps_rank: bool = False
    """Whether the process gets the variables of a launcher that has started this one."""
    has_launcher: bool = False
    """Whether the command begins with a launcher that must end the others itself, on SIGTERM."""
    may_restart: bool = True
    """Whether the process can be started again. The ranks of a Slurm step cannot."""


class EngineProcess:
    """A running engine, as a context manager.

    Entering starts the process and returns when it is loaded. From then on a thread watches it: it
    works if it makes steps, or if it answers a request for one token. A process that has ended, was
    stopped by a signal or is stuck is replaced; its requests then end with an error.

    Raises `NemotronError` if the engine does not start, and `KeyboardInterrupt` if `give_up` is set
    before it has.
    """

    def __init__(self, start: EngineStart, give_up: threading.Event | None = None) -> None:
        self._start = start
        self._give_up = give_up or threading.Event()
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._steps = -1
        self._worked_seconds = -WORK_SECONDS
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._watch, name="engine watch", daemon=True)

    def __enter__(self) -> EngineProcess:
        try:
            self._launch()
            pid = None if self._process is None else self._process.pid
            with loading(pid, self._start.size) as report:
                self.hello = self._wait_until_loaded(self._give_up, report)
        except BaseException:
            self._kill()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing.set()
        self._thread.join()
        if self._process is not None:
            with suppress(OSError), Probe(self._start.socket, PROBE_SECONDS) as probe:
                probe.drain()
            with suppress(subprocess.TimeoutExpired):  # MPI takes its time to end all ranks
                self._process.wait(EXIT_SECONDS)
            self._kill()

    @property
    def is_working(self) -> bool:
        """Whether the engine has worked in the last seconds."""
        return time.monotonic() - self._worked_seconds < WORK_SECONDS

    @property
    def failure(self) -> str | None:
        """Why the engine cannot be started again, or `None`."""
        return self._failure

    def running(self) -> int | None:
        """Return the number of requests that have not ended, or `None` if it does not say now."""
        try:
            with Probe(self._start.socket, PROBE_SECONDS) as probe:
                return probe.load().running
        except (ConnectionError, FileNotFoundError):  # without an engine there are none
            return 0
        except OSError:  # in the middle of a long step
            return None

    def answers(self) -> bool:
        """Return whether the engine generates a token now."""
        try:
            with Probe(self._start.socket, PROBE_SECONDS) as probe:
                return probe.canary()
        except (OSError, NemotronError):
            return False

    def _launch(self) -> None:
        if not self._start.command:
            return
        preexec = die_with_parent if self._start.has_launcher else shield
        with self._start.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    self._start.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=(os.environ if self._start.keeps_rank else without_launcher())
                    | SAFE_PATH
                    | self._start.environment,
                    start_new_session=True,  # a terminal's Ctrl-C is for `serve`, which drains
                    preexec_fn=preexec,  # noqa: PLW1509  # only calls the kernel
                )
            except OSError as error:
                raise NemotronError(
                    f"cannot start the engine: {error.strerror}", where=self._start.command[0]
                ) from error

    def _wait_until_loaded(
        self, give_up: threading.Event, report: Callable[[], None] = lambda: None
    ) -> Hello:
        """Return the engine's description. `report` is called again and again meanwhile."""
        deadline = time.monotonic() + self._start.startup_seconds
        while time.monotonic() < deadline:
            with suppress(OSError), Probe(self._start.socket, PROBE_SECONDS) as probe:
                hello = probe.hello()
                check_hello(hello, self._start.socket, self._start.tokenizer)
                probe.canary()
                self._worked_seconds = time.monotonic()
                return hello
            if self._process is not None and self._process.poll() is not None:
                raise NemotronError(
                    f"the engine's process ended with status {self._process.returncode}:"
                    f" {self._last_words()}"
                )
            report()
            if give_up.wait(0.05):
                raise KeyboardInterrupt
        raise NemotronError(
            f"the engine is not loaded after {self._start.startup_seconds} seconds",
            where=self._start.socket,
            remedy="raise timeouts.startup in the profile",
        )

    def _last_words(self) -> str:
        """Return why the process has ended, from its log."""
        lines = log_lines(self._start.log)
        messages = [line for line in lines if line.startswith(MESSAGE)]
        return messages[-1].removeprefix(MESSAGE) if messages else log_tail(self._start.log)

    def _watch(self) -> None:
        while not self._closing.wait(CHECK_SECONDS):
            if self._works():
                self._worked_seconds = time.monotonic()
            elif self._process is not None and self._is_lost():
                self._replace()
                if self._failure is not None:
                    return

    def _works(self) -> bool:
        """Return whether the engine has made steps since the last check, or makes one now.

        The engine answers between two steps. However long they are, it is given up only for one of
        the reasons for which it would be replaced.
        """

        def gives_up() -> bool:
            return self._closing.is_set() or self._is_lost()

        try:
            with Probe(self._start.socket, PROBE_SECONDS, gives_up) as probe:
                steps, self._steps = self._steps, probe.load().steps
                if steps in (-1, self._steps):
                    probe.canary()
        except (OSError, NemotronError):
            return False
        return True

    def _is_lost(self) -> bool:
        """Return whether the process has ended, is stopped or stuck, or cannot be reached."""
        idle = time.monotonic() - self._worked_seconds
        if idle > self._start.stall_seconds:
            return True
        if self._process is None:  # others started it, perhaps where its id means nothing here
            return False
        is_away = self._is_stopped() or not self._start.socket.is_socket()
        return self._process.poll() is not None or (idle > WORK_SECONDS and is_away)

    def _is_stopped(self) -> bool:
        """Return whether a signal has stopped the process."""
        try:
            stat = Path(f"/proc/{self.hello.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] in "Tt"

    def _replace(self) -> None:
        """Start the process again, with longer and longer pauses while that fails."""
        self._worked_seconds = -WORK_SECONDS
        pause = FIRST_BACK_OFF
        for _ in range(MAX_FAILED_STARTS):
            self._kill()
            if not self._start.may_restart:
                self._failure = "the engine has ended, and its ranks cannot be started again"
                return
            try:
                self._launch()
                self.hello = self._wait_until_loaded(self._closing)
            except KeyboardInterrupt:
                return
            except NemotronError as error:
                reason = str(error)
            else:
                self._steps = -1
                return
            if self._closing.wait(pause):
                return
            pause = min(2 * pause, LONGEST_BACK_OFF)
        self._failure = f"the engine does not start again: {reason}"

    def _kill(self) -> None:
        """End the process and all that it has started."""
        if self._process is None:
            return
        if self._start.has_launcher and self._process.poll() is None:
            self._process.terminate()  # then mpirun and srun end all ranks; killed, they would not
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)
        children: list[psutil.Process] = []
        if self._process.poll() is None:  # mpirun puts its children into groups of their own
            with suppress(psutil.Error):
                children = psutil.Process(self._process.pid).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        self._process.wait()
