"""What an engine counts since it started."""

from __future__ import annotations

from bisect import bisect_left

from nemotron_core.metrics import (
    INTER_TOKEN_LATENCY_METRIC,
    LATENCY_BOUNDS,
    TIME_TO_FIRST_TOKEN_METRIC,
)
from nemotron_engine.protocol import Histogram


class Counters:
    """Steps, tokens, and the latencies of tokens."""

    def __init__(self) -> None:
        self.steps = self.prompt_tokens = self.generated_tokens = 0
        self.draft_steps = self.draft_proposed = self.draft_accepted = 0
        self.histograms = {
            name: Histogram([0] * (len(LATENCY_BOUNDS) + 1))
            for name in (TIME_TO_FIRST_TOKEN_METRIC, INTER_TOKEN_LATENCY_METRIC)
        }

    def observe_first_token(self, seconds: float) -> None:
        """Count the time from a request's arrival to its first token."""
        self._observe(TIME_TO_FIRST_TOKEN_METRIC, seconds, 1)

    def observe_draft(self, count: int, proposed: int) -> None:
        """Count a step that gave an answer `count` tokens after `proposed` ones of a draft."""
        self.draft_steps += 1
        self.draft_proposed += proposed
        self.draft_accepted += min(count - 1, proposed)

    def observe_tokens(self, seconds: float, count: int) -> None:
        """Count `count` tokens that came `seconds` after the tokens before them."""
        self._observe(INTER_TOKEN_LATENCY_METRIC, seconds, count)

    def _observe(self, name: str, seconds: float, count: int) -> None:
        histogram = self.histograms[name]
        histogram.counts[bisect_left(LATENCY_BOUNDS, seconds)] += count
        histogram.total += seconds * count
