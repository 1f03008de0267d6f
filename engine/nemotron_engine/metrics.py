"""Names of the metrics that the models add to Triton's own."""

from __future__ import annotations

RUNNING_METRIC = "nemotron_requests_running"
