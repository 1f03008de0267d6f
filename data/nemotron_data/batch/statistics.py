"""What a run did: rows, tokens, speed, latency, reasons and cost."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from nemotron_data.transport.protocol import Answer


@dataclass(frozen=True)
class Prices:
    """Prices of a million tokens of prompts and of answers, in any currency."""

    prompt: float | None = None
    completion: float | None = None

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """Return the cost of tokens, or `None` without a price."""
        if self.prompt is None and self.completion is None:
            return None
        tokens = prompt_tokens * (self.prompt or 0) + completion_tokens * (self.completion or 0)
        return tokens / 1e6


class Summary(BaseModel):
    """What one run did, for its manifest and its table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    answered: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    rows_per_second: float
    tokens_per_second: float
    """Tokens of answers."""
    latency_p50: float | None
    """Seconds from sending a request to its answer."""
    latency_p95: float | None
    finish_reasons: dict[str, int]
    not_accepted: dict[str, int]
    """Number of answers that were not accepted, by reason."""
    retries: int
    overloads: int
    """Requests that the server refused because it was overloaded (429, 503)."""
    cost: float | None


class Statistics:
    """Counts of one run. `clock` returns seconds."""

    def __init__(self, prices: Prices, clock: Callable[[], float] = time.monotonic) -> None:
        self._prices, self._clock = prices, clock
        self._start = clock()
        self._latencies = array("f")
        self.answered = self.failed = self.retries = self.overloads = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.finish_reasons: Counter[str] = Counter()
        self.not_accepted: Counter[str] = Counter()

    def start(self) -> None:
        """Begin to count the time."""
        self._start = self._clock()

    @property
    def seconds(self) -> float:
        return self._clock() - self._start

    def record(self, answer: Answer, seconds: float, reason_against: str | None) -> None:
        """Count an answer and its tokens, also one that is not accepted."""
        self._latencies.append(seconds)
        self.prompt_tokens += answer.token_count("prompt_tokens")
        self.completion_tokens += answer.token_count("completion_tokens")
        if reason_against is not None:
            self.not_accepted[reason_against] += 1
            return
        self.answered += 1
        for choice in answer.choices:
            self.finish_reasons[str(choice.finish_reason)] += 1

    def summary(self) -> Summary:
        """Return the counts of the run until now."""
        seconds = max(self.seconds, 1e-9)
        p50 = p95 = None
        if self._latencies:
            p50, p95 = (round(float(q), 4) for q in np.percentile(self._latencies, [50, 95]))
        cost = self._prices.cost(self.prompt_tokens, self.completion_tokens)
        return Summary(
            seconds=round(seconds, 3),
            answered=self.answered,
            failed=self.failed,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            rows_per_second=round(self.answered / seconds, 2),
            tokens_per_second=round(self.completion_tokens / seconds, 2),
            latency_p50=p50,
            latency_p95=p95,
            finish_reasons=dict(self.finish_reasons),
            not_accepted=dict(self.not_accepted),
            retries=self.retries,
            overloads=self.overloads,
            cost=None if cost is None else round(cost, 6),
        )


def summary_table(summary: Summary, finished: int, failed: int, rows: int) -> dict[str, str]:
    """Return what a run did as names and values, beside the numbers of the whole output."""
    values = {
        "rows with a result": f"{finished:,} of {rows:,}",
        "failed": f"{failed:,}",
        "time": f"{summary.seconds:,.1f} s",
        "rows/s": f"{summary.rows_per_second:,.1f}",
        "tokens in, out": f"{summary.prompt_tokens:,}, {summary.completion_tokens:,}",
        "tokens/s": f"{summary.tokens_per_second:,.1f}",
    }
    if summary.latency_p50 is not None:
        values["latency p50, p95"] = f"{summary.latency_p50:.2f} s, {summary.latency_p95:.2f} s"
    for name, reasons in (
        ("finish reasons", summary.finish_reasons),
        ("not accepted", summary.not_accepted),
    ):
        if reasons:
            values[name] = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    values["sent again"] = f"{summary.retries:,}, of these overloaded {summary.overloads:,}"
    if summary.cost is not None:
        values["cost"] = f"{summary.cost:,.4f}"
    return values
