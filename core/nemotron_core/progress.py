"""Progress of long operations on standard error: bytes, rate and time left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_SECONDS = 10.0
"""Interval between two lines in a log, which cannot show a bar."""


@contextmanager
def byte_progress(name: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show the progress of the operation `name`: a bar on a terminal, lines in a log.

    Yields a function to call, from any thread, with each further number of bytes done of `total`.
    Nothing is shown unless `shown`.
    """
    console = Console(stderr=True)
    if not shown:
        yield lambda count: None
    elif console.is_terminal:
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        with progress:
            task = progress.add_task(name, total=total)
            yield lambda count: progress.advance(task, count)
    else:
        yield _Log(name, total).report


class _Log:
    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._start = self._last_line = time.monotonic()
        self._lock = threading.Lock()

    def report(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._last_line < LINE_SECONDS:
                return
            self._last_line = now
            rate = self._done / (now - self._start)
            print(
                f"{self._name}: {decimal(self._done)} of {decimal(self._total)}, "
                f"{decimal(int(rate))}/s, {int((self._total - self._done) / rate)} s left",
                file=sys.stderr,
                flush=True,
            )
