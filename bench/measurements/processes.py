"""The CPU time and the memory of a server's processes."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil


def family(roots: Collection[int], without: Collection[int] = ()) -> list[int]:
    """Return the ids of processes and of all that they started, except those `without`."""
    pids = set(roots)
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            pids |= {child.pid for child in psutil.Process(root).children(recursive=True)}
    return sorted(pids.difference(without))


def command_of(pid: int) -> list[str]:
    """Return the command line of a process; it is empty once the process has ended."""
    try:
        return psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pids: Collection[int]) -> float:
    """Return the CPU time that processes have used, in nanoseconds' resolution.

    The kernel has it for each thread; threads that have ended do not count.
    """
    return sum(
        int(file.read_text().split()[0]) / 1e9
        for pid in pids
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat")
        if file.exists()
    )


def rss_megabytes(pids: Collection[int]) -> float:
    """Return the resident memory of processes that still run."""
    total = 0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_info().rss
    return total / 1e6
