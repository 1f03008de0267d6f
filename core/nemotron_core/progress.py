"""Progress of long work on standard error: bytes, rate and time left."""

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
"""How often a log, which cannot show a bar, gets a line."""


@contextmanager
def byte_progress(what: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Call the result with each further number of bytes done, of `total`; from any thread.

    A bar on a terminal, a line now and then in a log; nothing unless `shown`.
    """
    console = Console(stderr=True)
    if not shown:
        yield lambda done: None
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
            task = progress.add_task(what, total=total)
            yield lambda done: progress.advance(task, done)
    else:
        yield _Log(what, total).report


class _Log:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._start = self._told = time.monotonic()
        self._lock = threading.Lock()

    def report(self, done: int) -> None:
        with self._lock:
            self._done += done
            now = time.monotonic()
            if now - self._told < LINE_SECONDS:
                return
            self._told = now
            rate = self._done / (now - self._start)
            print(
                f"{self._what}: {decimal(self._done)} of {decimal(self._total)}, "
                f"{decimal(int(rate))}/s, {int((self._total - self._done) / rate)} s left",
                file=sys.stderr,
                flush=True,
            )
