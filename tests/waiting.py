"""Waiting for what another process does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT = 900
"""Seconds after which a test gives up. Only what hangs takes as long, also on a busy machine."""


def until(
    condition: Callable[[], object],
    *,
    explain: Callable[[], object] = str,
    poll_seconds: float = 0.02,
) -> None:
    """Return when the condition holds. Raises `AssertionError` with `explain()` after `WAIT`."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain\n{explain()}"
        time.sleep(poll_seconds)


def until_written(path: Path, process: subprocess.Popen[Any]) -> None:
    """Return when a process has written a file. Raises `AssertionError` if it ends before."""

    def is_written() -> bool:
        assert path.exists() or process.poll() is None, process.stdout and process.stdout.read()
        return path.exists()

    until(is_written)
