"""Numbers of a report as texts."""

from __future__ import annotations

from nemotron_bench.statistics import QUANTILES, Summary


def quantiles(summary: Summary) -> str:
    """Return the quantiles of a latency in milliseconds, with the interval of the median."""
    p50, *others = (f"{getattr(summary, quantile) * 1e3:.1f}" for quantile in QUANTILES)
    return " / ".join([p50 + interval(summary.p50_interval, 1e3), *others])


def interval(ends: tuple[float, float] | None, factor: float) -> str:
    """Return an interval after a number, or "" if there is none."""
    return f" [{ends[0] * factor:.1f}, {ends[1] * factor:.1f}]" if ends else ""
