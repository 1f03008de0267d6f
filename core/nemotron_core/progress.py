"""Progress of long operations on standard error: bytes, rate and time left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR_SECONDS = 1.0
"""Duration after which an operation shows a bar."""
LINE_SECONDS = 10.0
"""Interval between two lines in a log, which cannot show a bar."""


@contextmanager
def byte_progress(name: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show the progress of the operation `name`: a bar on a terminal, lines in a log.

    Yields a function to call, from any thread, with each further number of bytes done of `total`.
    Nothing is shown unless `shown`.
    """
    if not shown:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _Bar(name, total) as bar:
            yield bar.report
    else:
        yield _Log(name, total).report


class _Bar:
    """A bar that appears once the operation has taken `BAR_SECONDS`, and then loads its library."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def report(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is None and time.monotonic() - self._start >= BAR_SECONDS:
                self._progress = _make_progress()
                self._task = self._progress.add_task(self._name, total=self._total)
                self._progress.start()
            if self._progress is not None and self._task is not None:
                self._progress.update(self._task, completed=self._done)


def _make_progress() -> Progress:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


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
            from rich.filesize import decimal  # noqa: PLC0415

            rate = self._done / (now - self._start)
            print(
                f"{self._name}: {decimal(self._done)} of {decimal(self._total)}, "
                f"{decimal(int(rate))}/s, {int((self._total - self._done) / rate)} s left",
                file=sys.stderr,
                flush=True,
            )
