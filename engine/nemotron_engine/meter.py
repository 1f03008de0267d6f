"""Metrics of the Triton models: counted in the model, shown on Triton's metrics page."""

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
"""Upper bounds of the histograms' buckets in seconds, 1 ms to 65 s."""
BUCKETS = (*(f"{bound:g}" for bound in LATENCY_BOUNDS), "+Inf")


class Meter:
    """Counts in this process, and sends to Triton in `flush`, as each call to Triton is expensive.

    Only the number of running requests is sent at once, because a drain waits for it. Metrics that
    were never counted do not appear. `labels` distinguish two models with the same metrics.

    Triton is called by one thread at a time: a process whose threads created and set metrics at the
    same time was seen to crash.
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
        """Release Triton's metrics, which must not outlive the model."""
        with self._sending:
            self._gauges.clear()
            self._counters.clear()
            self._histograms.clear()

    def running(self, count: int) -> None:
        """Set the number of requests that have begun and not ended."""
        self._set_gauge(RUNNING_METRIC, count)

    def add(self, name: str, count: float) -> None:
        """Add `count` to a counter."""
        with self._lock:
            self._totals[name] += count

    def observe(self, name: str, seconds: float, count: int = 1) -> None:
        """Count a latency in a histogram, `count` times."""
        with self._lock:
            if name not in self._histograms:
                self._histograms[name] = _Histogram()
            self._histograms[name].observe(seconds, count)

    def flush(self, gauges: Mapping[str, float]) -> None:
        """Send all counts and these gauges to Triton. Must be called from one thread only."""
        with self._lock:
            totals = dict(self._totals)
            latencies = {name: latency.values() for name, latency in self._histograms.items()}
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
        """Set the counters of one family: `values` by the label `le`, or by "" for no label."""
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
    """Measures the latencies of one request's tokens."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._last = time.monotonic()
        self._started = False

    def tokens(self, count: int) -> None:
        """Count `count` tokens that came now."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        self._meter.add(GENERATED_TOKENS_METRIC, count)
        if not self._started:
            self._started = True
            self._meter.observe(TIME_TO_FIRST_TOKEN_METRIC, elapsed)
            count, elapsed = count - 1, 0.0
        if count:
            self._meter.observe(INTER_TOKEN_LATENCY_METRIC, elapsed / count, count)


class _Metric:
    """One number on Triton's page. Only changes are sent."""

    def __init__(self, family: Any, labels: Mapping[str, str]) -> None:
        self._family = family  # Triton drops a family without references
        self._metric = family.Metric(labels=dict(labels))
        self._value = 0.0

    def set(self, value: float) -> None:
        if value != self._value:
            self._metric.increment(value - self._value)
            self._value = value


class _Histogram:
    """A histogram as counters with its parts' names: Triton 2.51 has no histograms for models."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BOUNDS) + 1)
        self._total = 0.0

    def observe(self, seconds: float, count: int) -> None:
        self._counts[bisect_left(LATENCY_BOUNDS, seconds)] += count
        self._total += seconds * count

    def values(self) -> dict[str, dict[str, float]]:
        """Return the values of the parts `bucket`, `sum` and `count`, each by the label `le`."""
        cumulative: list[float] = list(accumulate(self._counts))
        buckets = dict(zip(BUCKETS, cumulative, strict=True))
        return {"bucket": buckets, "sum": {"": self._total}, "count": {"": cumulative[-1]}}
