"""The engine's counters on Triton's metrics page."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import triton_python_backend_utils as pb_utils

from nemotron_core.metrics import (
    COUNTERS,
    DRAFT_ACCEPTED_METRIC,
    DRAFT_PROPOSED_METRIC,
    DRAFT_STEPS_METRIC,
    GAUGES,
    GENERATED_TOKENS_METRIC,
    HISTOGRAMS,
    KV_CACHE_USAGE_METRIC,
    LATENCY_BOUNDS,
    PROMPT_TOKENS_METRIC,
    RUNNING_METRIC,
    STEPS_METRIC,
    WAITING_METRIC,
)
from nemotron_engine.protocol import Histogram, Load

BUCKETS = (*(f"{bound:g}" for bound in LATENCY_BOUNDS), "+Inf")


class Meter:
    """Shows the engine's load. Used by one thread only: Triton crashed when two created metrics.

    Metrics that were never counted do not appear. When the engine has started again, its counters
    begin at 0, and the page goes on from where it was.
    """

    def __init__(self) -> None:
        self._metrics: dict[tuple[str, str], _Metric] = {}

    def close(self) -> None:
        """Release Triton's metrics, which must not outlive the model."""
        self._metrics.clear()

    def show(self, load: Load) -> None:
        """Set all metrics."""
        gauges: dict[str, float | None] = {
            RUNNING_METRIC: load.running,
            WAITING_METRIC: load.waiting,
            KV_CACHE_USAGE_METRIC: load.kv_cache_usage,
        }
        for name, value in gauges.items():
            if value is not None:
                self._metric(name, GAUGES[name]).set(value)
        counters = {
            STEPS_METRIC: load.steps,
            PROMPT_TOKENS_METRIC: load.prompt_tokens,
            GENERATED_TOKENS_METRIC: load.generated_tokens,
        }
        if load.draft_steps:
            counters |= {
                DRAFT_STEPS_METRIC: load.draft_steps,
                DRAFT_PROPOSED_METRIC: load.draft_proposed,
                DRAFT_ACCEPTED_METRIC: load.draft_accepted,
            }
        for name, count in counters.items():
            self._metric(name, COUNTERS[name]).count(count)
        for name, histogram in load.histograms.items():
            if any(histogram.counts):
                for (part, le), total in histogram_values(histogram).items():
                    self._metric(f"{name}_{part}", HISTOGRAMS[name], le).count(total)

    def _metric(self, name: str, text: str, le: str = "") -> _Metric:
        if (name, le) not in self._metrics:
            kind = pb_utils.MetricFamily
            family = next(
                (metric.family for (other, _), metric in self._metrics.items() if other == name),
                None,
            ) or kind(
                name=name, description=text, kind=kind.GAUGE if name in GAUGES else kind.COUNTER
            )
            self._metrics[name, le] = _Metric(family, {"le": le} if le else {})
        return self._metrics[name, le]


def histogram_values(histogram: Histogram) -> dict[tuple[str, str], float]:
    """Return a histogram as counters, by part (`bucket`, `sum`, `count`) and the label `le`.

    Triton 2.51 has no histograms for models.
    """
    cumulative = list(accumulate(histogram.counts))
    buckets = {("bucket", le): float(n) for le, n in zip(BUCKETS, cumulative, strict=True)}
    return buckets | {("sum", ""): histogram.total, ("count", ""): float(cumulative[-1])}


class _Metric:
    """One number on Triton's page. Only changes are sent, as each call is expensive."""

    def __init__(self, family: Any, labels: Mapping[str, str]) -> None:
        self.family = family  # Triton drops a family without references
        self._metric = family.Metric(labels=dict(labels))
        self._value = 0.0

    def set(self, value: float) -> None:
        """Show a value."""
        if value != self._value:
            self._metric.increment(value - self._value)
            self._value = value

    def count(self, total: float) -> None:
        """Add what a counter has grown by; a smaller one was started again."""
        if total != self._value:
            self._metric.increment(total - self._value if total > self._value else total)
            self._value = total
