"""Percentiles, summaries, arrival times, lengths and SLO limits; pure functions."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nemotron_core.errors import NemotronError

RISK = 0.05
"""Probability that a confidence interval does not have the true value."""
PARTS = 10
STUDENT_T = 2.262
"""0.975 quantile of Student's t with `PARTS` - 1 degrees of freedom."""


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return a percentile, interpolated linearly as NumPy does by default.

    >>> percentile([10.0, 20.0, 40.0], 0.75)
    30.0
    """
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True)
class Summary:
    """Summary of some values, in the unit of the values."""

    mean: float
    p50: float
    p90: float
    p99: float
    min: float
    max: float
    p50_interval: tuple[float, float] | None = None
    """95 % confidence interval of the median. `None` for fewer than six values."""


def summarize(values: Sequence[float]) -> Summary | None:
    """Return the summary of the values, or `None` if there are none."""
    if not values:
        return None
    return Summary(
        mean=math.fsum(values) / len(values),
        p50=percentile(values, 0.5),
        p90=percentile(values, 0.9),
        p99=percentile(values, 0.99),
        min=min(values),
        max=max(values),
        p50_interval=median_interval(values),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return an interval that has the median of their distribution with 95 % confidence.

    Its ends are two of the values, whatever their distribution is (H. A. David, Order Statistics,
    7.1). Returns `None` if there are too few values for such an interval.

    >>> median_interval([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    (1.0, 6.0)
    """
    count = len(values)
    tail, low = 0.0, -1
    while (tail := tail + math.comb(count, low + 1) / 2**count) <= RISK / 2:
        low += 1
    if low < 0:
        return None
    ordered = sorted(values)
    return ordered[low], ordered[count - 1 - low]


def throughput_interval(
    requests: Sequence[tuple[float, float, int]],
) -> tuple[float, float] | None:
    """Return a 95 % confidence interval of the tokens per second of a load.

    Each request has a start, an end and a number of tokens, which count as evenly spread over its
    time. The time of the load is cut into `PARTS` parts, whose rates are taken for independent and
    normally distributed. Returns `None` for fewer requests than parts.
    """
    if len(requests) < PARTS:
        return None
    start, end = min(r[0] for r in requests), max(r[1] for r in requests)
    width = (end - start) / PARTS
    if width <= 0:
        return None
    rates = []
    for part in range(PARTS):
        low, high = start + part * width, start + (part + 1) * width
        tokens = math.fsum(
            count * max(0.0, min(high, last) - max(low, first)) / (last - first)
            for first, last, count in requests
            if last > first
        )
        rates.append(tokens / width)
    mean = math.fsum(rates) / PARTS
    variance = math.fsum((rate - mean) ** 2 for rate in rates) / (PARTS - 1)
    half = STUDENT_T * math.sqrt(variance / PARTS)
    return max(0.0, mean - half), mean + half


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Yield arrival times of requests in seconds from the start: a seeded Poisson process."""
    rng = random.Random(seed)
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens, drawn evenly from `low` to `high`, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str, where: str) -> Lengths:
        """Parse `N` or `LOW-HIGH`. Raises `NemotronError` if the text is neither.

        >>> Lengths.parse("64-128", "--input")
        Lengths(low=64, high=128)
        """
        parts = text.split("-")
        if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise NemotronError(f"{text!r} is no length", where=where, remedy="use N or LOW-HIGH")
        low, high = int(parts[0]), int(parts[-1])
        if low > high:
            raise NemotronError(f"{low} is more than {high}", where=where)
        return cls(low, high)

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def parse_slo(text: str) -> dict[str, float]:
    """Return upper limits in seconds by latency.

    Raises `NemotronError` if a latency is unknown or a limit is not a positive number.

    >>> parse_slo("ttft=0.5,itl=0.05")
    {'ttft': 0.5, 'itl': 0.05}
    """
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            limits[name] = float(value)
        except ValueError as error:
            raise NemotronError(f"{part!r} is no limit", where="--slo", remedy=_SLO) from error
        if name not in LATENCIES or not 0 < limits[name] < math.inf:
            raise NemotronError(f"{part!r} is no limit", where="--slo", remedy=_SLO)
    return limits


def meets(limits: Mapping[str, float], latencies: Mapping[str, float | None]) -> bool:
    """Return whether a request met all limits; a latency that it does not have meets any limit."""
    return all(
        (latency := latencies[name]) is None or latency <= limit for name, limit in limits.items()
    )


LATENCIES = {
    "ttft": "time to first token",
    "itl": "inter-token latency",
    "e2e": "end-to-end latency",
}
"""Names of the latencies. A request's inter-token latency is its average over the request."""
QUANTILES = ("p50", "p90", "p99")
"""Fields of `Summary` that reports show."""
_SLO = "use ttft=SECONDS,itl=SECONDS,e2e=SECONDS, or some of them"
