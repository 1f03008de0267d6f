"""The gateway's Prometheus metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Bounds of the histograms' buckets for whole requests and first tokens."""
BETWEEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Bounds of the histogram's buckets for the time between two pieces."""


class BetweenTokens(Collector):
    """Histogram of the time between two pieces.

    The library's own one locks and counts in steps, which each piece of each answer would pay for.
    """

    def __init__(self) -> None:
        self._counts = [0] * (len(BETWEEN_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self._counts[bisect_left(BETWEEN_SECONDS, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Yield the histogram."""
        bounds = [*map(str, BETWEEN_SECONDS), "+Inf"]
        yield HistogramMetricFamily(
            "nemotron_gateway_inter_token_latency_seconds",
            "From one piece of a streamed answer to the next",
            buckets=list(zip(bounds, accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )


class Metrics:
    """Metrics with a registry of their own, so that a process can have two gateways."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "nemotron_gateway_requests",
            "Requests answered, by route and status",
            ["route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "nemotron_gateway_request_seconds",
            "From a request's headers to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.running = Gauge(
            "nemotron_gateway_requests_running", "Prompts at the engine", registry=registry
        )
        self.batches = Gauge(
            "nemotron_gateway_batches_running", "Batches whose rows are asked", registry=registry
        )
        self.prompt_tokens = Counter(
            "nemotron_gateway_prompt_tokens", "Tokens of prompts answered", registry=registry
        )
        self.generated_tokens = Counter(
            "nemotron_gateway_generated_tokens", "Tokens sent to clients", registry=registry
        )
        self.first_token = Histogram(
            "nemotron_gateway_time_to_first_token_seconds",
            "From a request's headers to the first piece of its answer, streamed answers only",
            buckets=SECONDS,
            registry=registry,
        )
        self.between_tokens = BetweenTokens()
        registry.register(self.between_tokens)

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)
