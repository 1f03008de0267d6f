"""The progress of an engine that loads: an estimate from what its processes hold in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from nemotron_core.progress import byte_progress

LOOK_SECONDS = 0.5
"""Time between two looks at the processes, which cost some milliseconds each."""


@contextmanager
def loading(pid: int | None, size: int) -> Iterator[Callable[[], None]]:
    """Show how much of `size` bytes the process `pid` and its children have loaded.

    Yields a function to call often. Libraries do not say how far they are, so what is shown is the
    memory of the processes, or what they have read from files if that is more. A `pid` of `None`,
    or a `size` of 0, shows nothing.
    """
    with byte_progress("loading the engine", size, shown=pid is not None and size > 0) as report:
        shown, next_look = 0, 0.0

        def look() -> None:
            nonlocal shown, next_look
            now = time.monotonic()
            if pid is None or now < next_look:
                return
            next_look = now + LOOK_SECONDS
            loaded = min(size, loaded_bytes(pid))
            if loaded > shown:
                report(loaded - shown)
                shown = loaded

        yield look


def loaded_bytes(pid: int) -> int:
    """Return the bytes that a process and its children hold or have read, whichever is more."""
    held = read = 0
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            held += process.memory_info().rss
            read += process.io_counters().read_chars
        except psutil.Error:  # it has ended, or is not ours
            continue
    return max(held, read)
