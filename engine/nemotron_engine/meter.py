"""Counts what an engine's models do, and tells Triton's metrics page."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import triton_python_backend_utils as pb_utils

from nemotron_core.metrics import (
    COUNTERS,
    GAUGES,
    GENERATED_TOKENS_METRIC,
    HISTOGRAMS,
    INTER_TOKEN_LATENCY_METRIC,
    RUNNING_METRIC,
    TIME_TO_FIRST_TOKEN_METRIC,
)

FLUSH_SECONDS = 0.5
LATENCY_BOUNDS = tuple(0.001 * 2**power for power in range(17))
"""Seconds: 1 ms to 65 s."""
BUCKETS = (*(f"{bound:g}" for bound in LATENCY_BOUNDS), "+Inf")


class Meter:
    """Counts here, and hands over when `flush` is called: each call to Triton crosses processes.

    Only the number of running requests goes there at once, because a drain waits for it. Metrics
    that nobody counts do not appear. `labels` tell two models of the same kind apart.

    Triton is only asked by one thread at a time: its metrics were seen to break a process that made
    and set them from several.
    """

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._labels = dict(labels or {})
        self._gauges: dict[str, _Metric] = {}
        self._counters: dict[str, dict[str, _Metric]] = {}
        self._totals: defaultdict[str, float] = defaultdict(float)
        self._histograms: dict[str, _Histogram] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self.running(0)

    def close(self) -> None:
        """Let go of Triton's metrics, which must not outlive the model."""
        with self._sending:
            self._gauges.clear()
            self._counters.clear()
            self._histograms.clear()

    def running(self, count: int) -> None:
        """Requests that have begun and not ended."""
        self._set_gauge(RUNNING_METRIC, count)

    def add(self, name: str, count: float) -> None:
        """To a counter."""
        with self._lock:
            self._totals[name] += count

    def observe(self, name: str, seconds: float, count: int = 1) -> None:
        """A latency, `count` times."""
        with self._lock:
            if name not in self._histograms:
                self._histograms[name] = _Histogram()
            self._histograms[name].observe(seconds, count)

    def flush(self, gauges: Mapping[str, float]) -> None:
        """Hand everything over; called by one thread."""
        with self._lock:
            totals = dict(self._totals)
            latencies = {name: one.values() for name, one in self._histograms.items()}
        for name, total in totals.items():
            self._set_counters(name, COUNTERS[name], {"": total})
        for name, parts in latencies.items():
            for part, values in parts.items():
                self._set_counters(f"{name}_{part}", HISTOGRAMS[name], values)
        for name, value in gauges.items():
            self._set_gauge(name, value)

    def _set_gauge(self, name: str, value: float) -> None:
        with self._sending:
            if name not in self._gauges:
                family = pb_utils.MetricFamily(
                    name=name, description=GAUGES[name], kind=pb_utils.MetricFamily.GAUGE
                )
                self._gauges[name] = _Metric(family, self._labels)
            self._gauges[name].set(value)

    def _set_counters(self, name: str, text: str, values: Mapping[str, float]) -> None:
        """One family; `values` by the label `le`, "" for a family without it."""
        with self._sending:
            if name not in self._counters:
                family = pb_utils.MetricFamily(
                    name=name, description=text, kind=pb_utils.MetricFamily.COUNTER
                )
                self._counters[name] = {
                    le: _Metric(family, self._labels | ({"le": le} if le else {})) for le in values
                }
            for le, value in values.items():
                self._counters[name][le].set(value)


class Timer:
    """Times the tokens of one request."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._last = time.monotonic()
        self._started = False

    def tokens(self, count: int) -> None:
        """`count` tokens came now."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        self._meter.add(GENERATED_TOKENS_METRIC, count)
        if not self._started:
            self._started = True
            self._meter.observe(TIME_TO_FIRST_TOKEN_METRIC, passed)
            count, passed = count - 1, 0.0
        if count:
            self._meter.observe(INTER_TOKEN_LATENCY_METRIC, passed / count, count)


class _Metric:
    """One number on Triton's page; only changes go there."""

    def __init__(self, family: Any, labels: Mapping[str, str]) -> None:
        self._family = family  # Triton forgets a family that nobody holds
        self._metric = family.Metric(labels=dict(labels))
        self._value = 0.0

    def set(self, value: float) -> None:
        if value != self._value:
            self._metric.increment(value - self._value)
            self._value = value


class _Histogram:
    """Triton 2.51 has no histograms for models, so the parts are counters of the same names."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BOUNDS) + 1)
        self._total = 0.0

    def observe(self, seconds: float, count: int) -> None:
        self._counts[bisect_left(LATENCY_BOUNDS, seconds)] += count
        self._total += seconds * count

    def values(self) -> dict[str, dict[str, float]]:
        """Of the parts `bucket`, `sum` and `count`, by the label `le`."""
        up_to: list[float] = list(accumulate(self._counts))
        buckets = dict(zip(BUCKETS, up_to, strict=True))
        return {"bucket": buckets, "sum": {"": self._total}, "count": {"": up_to[-1]}}
