"""Timing: commands with their peak memory, rounds that take turns, and summaries of runs."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil

POLL_SECONDS = 0.005


@dataclass(frozen=True)
class CommandCost:
    """Cost of one command."""

    seconds: float
    peak_rss: int
    """Highest RSS in bytes of the command and its children together, sampled every 5 ms."""


def run_command(command: Sequence[str]) -> CommandCost:
    """Run a command and return its cost. Raises `SystemExit` if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak_rss = 0

    def watch() -> None:
        nonlocal peak_rss
        root = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = [root, *root.children(recursive=True)]
                peak_rss = max(peak_rss, sum(member.memory_info().rss for member in family))
            except psutil.Error:
                pass
            time.sleep(POLL_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    exit_code = process.wait()
    seconds = time.perf_counter() - start
    watcher.join()
    if exit_code:
        raise SystemExit(f"{' '.join(command)} failed with {exit_code}")
    return CommandCost(seconds, peak_rss)


def in_turn(runs: int, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the number of the run and a name, for all names in each run.

    Each run begins with the next name: what ran before leaves the machine in another state.

    >>> list(in_turn(2, ["a", "b"]))
    [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """
    for run in range(runs):
        first = run % len(names)
        for name in [*names[first:], *names[:first]]:
            yield run, name


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum and maximum.

    >>> summary([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spread(summary: Mapping[str, float], form: str, scale: float = 1) -> str:
    """Return `median (min–max)`, each multiplied by `scale` and formatted with `form`.

    >>> spread(summary([3.0, 1.0, 2.0]), ".1f", 10)
    '20.0 (10.0–30.0)'
    """
    median, low, high = (f"{summary[key] * scale:{form}}" for key in ("median", "min", "max"))
    return f"{median} ({low}–{high})"
