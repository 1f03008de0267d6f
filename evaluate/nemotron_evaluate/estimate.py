"""A value with its confidence interval, as the reports have it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from nemotron_evaluate.statistics import Interval, Sums, bootstrap, wilson


class Estimate(BaseModel):
    """A value with its 95 % interval.

    A fraction of independent trials has Wilson's interval. All else is resampled by cluster (a
    text, a prompt, a conversation), which a single one does not allow.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, totals: Sequence[float], counts: Sequence[float]) -> Estimate:
        """Return sum(totals) / sum(counts), each with one number for each cluster."""
        interval = bootstrap(totals, counts)
        return cls._of(math.fsum(totals) / math.fsum(counts), interval)

    @classmethod
    def fraction(cls, successes: int, count: int) -> Estimate:
        """Return a fraction of independent trials."""
        return cls._of(successes / count, wilson(successes, count))

    @classmethod
    def mean(cls, clusters: Sequence[Sequence[float]]) -> Estimate:
        """Return the mean of all values, as a fraction if each cluster is one 0 or 1.

        >>> Estimate.mean([(1.0,), (0.0,)])
        Estimate(value=0.5, low=0.09453120573423074, high=0.9054687942657693)
        >>> Estimate.mean([(1.0, 1.0), (0.0, 1.0)]).value
        0.75
        """
        if all(is_trial(cluster) for cluster in clusters):
            return cls.fraction(sum(value == 1 for (value,) in clusters), len(clusters))
        return cls.resampled(clusters)

    @classmethod
    def resampled(cls, clusters: Sequence[Sequence[float]]) -> Estimate:
        """Return the mean of all values, which are no trials, such as ratings."""
        return cls.of(*sums(clusters))

    @classmethod
    def change(cls, before: Sequence[Sequence[float]], now: Sequence[Sequence[float]]) -> Estimate:
        """Return the mean of all values `now` minus that `before`, of the same clusters."""
        mean_before, mean_now = (math.fsum(t) / math.fsum(c) for t, c in map(sums, (before, now)))
        return cls._of(mean_now - mean_before, bootstrap(*sums(now), before=sums(before)))

    @classmethod
    def _of(cls, value: float, interval: Interval | None) -> Estimate:
        return cls(
            value=value,
            low=None if interval is None else interval.low,
            high=None if interval is None else interval.high,
        )

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, or `None` if there is no interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def exp(self) -> Estimate:
        """Return the estimate of e to the power of the value."""
        return self._mapped(math.exp(end) for end in self._numbers())

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of `factor` times the value; the factor is positive."""
        return self._mapped(factor * end for end in self._numbers())

    def _numbers(self) -> list[float]:
        return [end for end in (self.value, self.low, self.high) if end is not None]

    def _mapped(self, numbers: Iterable[float]) -> Estimate:
        value, *ends = numbers
        return self._of(value, Interval(*ends) if ends else None)


def sums(clusters: Sequence[Sequence[float]]) -> Sums:
    """Return the sum of each cluster's values, and how many these are."""
    return [math.fsum(cluster) for cluster in clusters], [float(len(c)) for c in clusters]


def is_trial(cluster: Sequence[float]) -> bool:
    """Return whether a cluster is a single trial that succeeds or fails."""
    return len(cluster) == 1 and cluster[0] in (0, 1)
