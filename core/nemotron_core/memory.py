"""The memory that a process can still take, on a bare machine, in a container or in a Slurm job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MEMORY_FILE = Path("/proc/meminfo")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Limits of containers and jobs: control groups, version 2."""
OWN_GROUP = Path("/proc/self/cgroup")
"""Names the control group of this process, seen from `CONTROL_GROUPS`."""


def free_memory() -> int:
    """Return the bytes of memory that this process can take without swapping or being killed.

    That is the least of the machine's free memory and of what each control group around the
    process leaves. Pages that only cache files do not count as taken.
    """
    lines = MEMORY_FILE.read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    free = int(fields["MemAvailable"].split()[0]) << 10
    return int(min(free, *map(_room, _groups())))


def _groups() -> Iterator[Path]:
    """Yield the folders of the control groups around this process, from the outermost on."""
    yield CONTROL_GROUPS
    try:
        lines = OWN_GROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    folder = CONTROL_GROUPS
    for line in lines:
        if line.startswith("0::"):  # version 2 has one hierarchy, number 0, without a name
            for part in line.removeprefix("0::").split("/"):
                if part and part != "..":  # "..": a group that the container does not see
                    folder /= part
                    yield folder


def _room(folder: Path) -> float:
    """Return how many bytes a control group leaves: no limit is infinitely many."""
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        statistics = (folder / "memory.stat").read_text(encoding="ascii")
        used = int(dict(line.split() for line in statistics.splitlines())["anon"])
    except (OSError, ValueError, KeyError):  # no such group, no limit ("max"), or version 1
        return float("inf")
    return max(0, limit - used)
