"""A harness's process: its output is shown and kept, and it ends with the command."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from nemotron_core.errors import NemotronError
from nemotron_evaluate.writing import writing

END_SECONDS = 10.0
"""Time in which an interrupted harness may end by itself."""
QUOTED = 400
"""Number of characters of a harness's message in an error."""
READ_SIZE = 1 << 16


class OutOfTime(NemotronError):
    """A harness was stopped at the end of its time."""


def run_harness(
    command: Sequence[str],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    seconds: float | None = None,
    telling: Sequence[str] = (),
) -> None:
    """Run a harness to its end in `folder`. Its output goes to the file `log` and to stderr.

    Lines of the output with one of the words `telling` say best why a harness failed. Raises
    `NemotronError`, which quotes such a line, if the harness fails, or if its output cannot be
    written, `OutOfTime` if it was stopped after `seconds`, and `KeyboardInterrupt`. After each of
    them the harness has ended, too.
    """
    end = math.inf if seconds is None else time.monotonic() + seconds
    with writing(log), log.open("ab") as file:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise NemotronError(
                f"cannot start: {error.strerror}", where=command[0], remedy="install it again"
            ) from error
        if process.stdout is None:
            raise AssertionError("the process was started with a pipe")
        start = file.tell()
        try:
            while data := _read(process.stdout.fileno(), end):
                file.write(data)
                file.flush()
                with writing("stderr"):
                    typer.echo(data, nl=False, err=True)
            process.wait()
        finally:
            _end(process)
            process.stdout.close()
    if process.returncode:
        reason = _reason(log, start, telling)
        raise NemotronError(
            f"{Path(command[0]).name} ended with {process.returncode}: {reason}",
            where=log,
            remedy="what was answered is kept; the same command goes on",
        )


def _read(descriptor: int, end: float) -> bytes:
    """Return what is written next, or nothing when the writer has ended."""
    left = end - time.monotonic()
    ready, _, _ = select.select([descriptor], [], [], None if left == math.inf else max(0.0, left))
    if not ready:
        raise OutOfTime("the harness was stopped at the end of its time")
    return os.read(descriptor, READ_SIZE)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a harness that still runs, and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):  # its workers may outlive it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _reason(log: Path, start: int, telling: Sequence[str]) -> str:
    """Return the last telling line that a run wrote, or the last one of all."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    written = [line.strip() for line in lines if line.strip()] or ["without a message"]
    for word in (*telling, "Error", ""):
        if matches := [line for line in written if word in line]:
            start_of_reason = matches[-1].index(word) if word in telling else 0
            return matches[-1][start_of_reason:][:QUOTED]
    raise AssertionError("every line has the empty word")
