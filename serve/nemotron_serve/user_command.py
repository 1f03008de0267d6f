"""The command of `nemotron serve ENGINE -- COMMAND`, with which the server starts and stops."""

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
from nemotron_serve.ports import Endpoints
from nemotron_serve.triton import EXIT_SECONDS, die_with_parent

SIGNAL_EXIT_CODE = 128
"""Number that is added to a signal's number for the exit code after it, as in a shell."""


class CommandFailed(NemotronError):
    """The user's command failed. Its exit code becomes the exit code of `nemotron`."""

    def __init__(self, status: int, arguments: Sequence[str]) -> None:
        super().__init__(f"the command ended with status {status}", where=shlex.join(arguments))
        self.exit_code = status if status > 0 else SIGNAL_EXIT_CODE - status


class UserCommand:
    """A running command, as a context manager that ends all of the command's processes.

    The addresses of the server are in the command's environment, in the variables that
    `nemotron chat` and `nemotron batch` read. Raises `NemotronError` if the command cannot start.
    """

    def __init__(self, arguments: Sequence[str], endpoints: Endpoints) -> None:
        self._arguments = arguments
        grpc = f"{endpoints.host}:{endpoints.grpc}"
        urls = {
            "NEMOTRON_URL": grpc,
            "NEMOTRON_BATCH_URL": f"grpc://{grpc}",
            "NEMOTRON_HTTP": f"http://{endpoints.host}:{endpoints.http}",
        }
        if endpoints.gateway is not None:
            urls["NEMOTRON_GATEWAY"] = f"http://{endpoints.host}:{endpoints.gateway}"
        try:
            self._process = subprocess.Popen(
                arguments,
                env=without_rank() | urls,
                start_new_session=True,  # a terminal's Ctrl-C is for `serve`
                preexec_fn=die_with_parent,  # noqa: PLW1509  # only calls the kernel
            )
        except OSError as error:
            raise NemotronError(f"cannot start: {error.strerror}", where=arguments[0]) from error

    def __enter__(self) -> UserCommand:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_stop(self) -> None:
        """Send SIGTERM to all processes of the command."""
        if not self.has_ended:
            self._signal(signal.SIGTERM)

    def finish(self) -> None:
        """Wait for the command to end, then kill what remains of it.

        Raises `CommandFailed` unless its exit status is 0.
        """
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        self._signal(signal.SIGKILL)
        if status := self._process.wait():
            raise CommandFailed(status, self._arguments)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def check_command(arguments: Sequence[str]) -> None:
    """Raise `NemotronError` if there is no such program, before the engine is loaded."""
    if arguments and shutil.which(arguments[0]) is None:
        raise NemotronError("no such command", where=arguments[0])
