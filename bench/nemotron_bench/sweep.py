"""The sweep: more and more requests in flight, until the server is saturated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nemotron_bench.load import Level
from nemotron_bench.results import LevelResult

LITTLE = 1.05
"""A load that is twice as high and has less than this factor of throughput adds nothing."""
MAX_CONCURRENCY = 1024
ENOUGH = 0.9
"""Fraction of the highest throughput at which a server counts as saturated."""


def sweep(measure: Callable[[Level], LevelResult]) -> list[LevelResult]:
    """Measure 1, 2, 4, … requests in flight until the throughput no longer grows.

    Ends after two loads that add nothing, at the first one with failed requests, or at
    `MAX_CONCURRENCY`.
    """
    results: list[LevelResult] = []
    best, idle, concurrency = 0.0, 0, 1
    while concurrency <= MAX_CONCURRENCY and idle < 2:
        result = measure(Level(concurrency=concurrency))
        results.append(result)
        if result.errors:
            break
        speed = result.output_tokens_per_second
        idle = 0 if speed >= best * LITTLE else idle + 1
        best = max(best, speed)
        concurrency *= 2
    return results


def knee(levels: Sequence[LevelResult]) -> int | None:
    """Return the smallest number of requests in flight with `ENOUGH` of the highest throughput.

    Loads with failed requests do not count. Returns `None` if no other has any throughput.
    """
    speeds = _speeds(levels)
    highest = max(speeds.values(), default=0.0)
    if highest <= 0:
        return None
    return min(count for count, speed in speeds.items() if speed >= ENOUGH * highest)


def knee_text(count: int, levels: Sequence[LevelResult]) -> str:
    """Return the sentence of a report about the knee."""
    speeds = _speeds(levels)
    fraction = speeds[count] / max(speeds.values())
    return (
        f"Knee: {count} at once give {fraction:.0%} of the highest throughput; more requests at"
        " once mostly wait longer."
    )


def _speeds(levels: Sequence[LevelResult]) -> dict[int, float]:
    """Return the throughput of each load without failed requests."""
    return {
        level.concurrency: level.output_tokens_per_second
        for level in levels
        if level.concurrency and not level.errors
    }
