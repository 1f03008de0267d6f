"""What `nemotron serve ENGINE -- COMMAND` runs while the server is up; its end is the server's."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from nemotron_core.errors import NemotronError
from nemotron_core.launcher import without_rank
from nemotron_serve.server import Endpoints
from nemotron_serve.triton import EXIT_SECONDS, die_with_parent

SIGNALLED = 128
"""A shell's exit code for a process that a signal has ended is this, and the signal's number."""


class CommandFailed(NemotronError):
    """With the command's own exit code, which becomes that of `nemotron`."""

    def __init__(self, status: int, arguments: Sequence[str]) -> None:
        super().__init__(f"the command ended with status {status}", where=shlex.join(arguments))
        self.exit_code = status if status > 0 else SIGNALLED - status


class UserCommand:
    """A running command; a context manager that leaves none of its processes behind.

    It finds the server in its environment, as `nemotron chat` and `nemotron batch` look for it.
    NemotronError if it cannot be started.
    """

    def __init__(self, arguments: Sequence[str], ends: Endpoints) -> None:
        self._arguments = arguments
        grpc = f"{ends.address}:{ends.grpc}"
        urls = {
            "NEMOTRON_URL": grpc,
            "NEMOTRON_BATCH_URL": f"grpc://{grpc}",
            "NEMOTRON_HTTP": f"http://{ends.address}:{ends.http}",
        }
        if ends.gateway is not None:
            urls["NEMOTRON_GATEWAY"] = f"http://{ends.address}:{ends.gateway}"
        try:
            self._process = subprocess.Popen(
                arguments,
                env=without_rank() | urls,
                start_new_session=True,  # a terminal's Ctrl-C is for the server, which hands it on
                preexec_fn=die_with_parent,  # noqa: PLW1509  # calls nothing but the kernel
            )
        except OSError as error:
            raise NemotronError(f"cannot start: {error.strerror}", where=arguments[0]) from error

    def __enter__(self) -> UserCommand:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_stop(self) -> None:
        """SIGTERM to all its processes."""
        if not self.has_ended:
            self._signal(signal.SIGTERM)

    def finish(self) -> None:
        """Give it a last moment. CommandFailed if it ends otherwise than with status 0."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        self._signal(signal.SIGKILL)
        if status := self._process.wait():
            raise CommandFailed(status, self._arguments)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def check_command(arguments: Sequence[str]) -> None:
    """NemotronError if there is no such program: better now than when the engine is loaded."""
    if arguments and shutil.which(arguments[0]) is None:
        raise NemotronError("no such command", where=arguments[0])
