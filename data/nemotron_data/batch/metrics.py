"""The state of a run for Prometheus, at a port of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from nemotron_core.errors import NemotronError
from nemotron_data.batch.pool import Pool
from nemotron_data.batch.statistics import Statistics

ADDRESS = "127.0.0.1"


class _Collector:
    def __init__(self, statistics: Statistics, pool: Pool) -> None:
        self._statistics, self._pool = statistics, pool

    def collect(self) -> Iterator[Any]:
        statistics = self._statistics
        counts = {
            "rows_answered": ("Rows that got an answer", statistics.answered),
            "rows_failed": ("Rows that failed", statistics.failed),
            "prompt_tokens": ("Tokens of prompts", statistics.prompt_tokens),
            "completion_tokens": ("Tokens of answers", statistics.completion_tokens),
            "retries": ("Requests that were sent again", statistics.retries),
            "overloads": ("Requests that an overloaded server refused", statistics.overloads),
        }
        for name, (description, value) in counts.items():
            yield CounterMetricFamily(f"nemotron_batch_{name}", description, value=value)
        for name, description in (
            ("running", "Requests at the server"),
            ("limit", "Requests that may be at the server at once"),
        ):
            family = GaugeMetricFamily(f"nemotron_batch_{name}", description, labels=["url"])
            for server in self._pool.servers:
                value = server.running if name == "running" else server.concurrency.limit
                family.add_metric([server.url], value)
            yield family


@contextmanager
def serve_metrics(port: int | None, statistics: Statistics, pool: Pool) -> Iterator[None]:
    """Serve the metrics of a run. Raises `NemotronError` if the port is taken."""
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(_Collector(statistics, pool))
    try:
        server, thread = start_http_server(port, ADDRESS, registry)
    except OSError as error:
        raise NemotronError(
            f"cannot listen: {error.strerror}", where=f"--metrics-port {port}"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
