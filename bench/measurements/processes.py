"""The CPU time and the memory of a server's processes."""

from __future__ import annotations

import re
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


def rss_by_name(pids: Collection[int]) -> dict[str, int]:
    """Return the resident memory in bytes of processes that still run; see `name_of`."""
    sizes = {}
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            sizes[name_of(pid)] = psutil.Process(pid).memory_info().rss
    return sizes


def name_of(pid: int) -> str:
    """Return the Triton model that runs in a process, or its Python module, or its program."""
    command = command_of(pid)
    match = re.search(r"/models/(\w+)/|-m (nemotron_\w+)( gateway)?", " ".join(command))
    if match:
        return match[1] or match[2] + (match[3] or "")
    return Path(command[0]).name if command else ""
