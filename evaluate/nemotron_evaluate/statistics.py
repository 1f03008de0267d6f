"""Confidence intervals; pure functions.

Tokens of one text are not independent. What is resampled is therefore always a whole text, here
called a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
"""Confidence level of every interval."""
RESAMPLES = 10_000
"""Number of samples that a bootstrap draws."""
_CHUNK = 1 << 22
"""Number of drawn indices that are held in memory at once."""


@dataclass(frozen=True)
class Interval:
    """Ends of a confidence interval."""

    low: float
    high: float


def wilson(successes: float, count: int) -> Interval:
    """Return Wilson's score interval of a proportion (Wilson 1927).

    >>> wilson(120, 164)
    Interval(low=0.6591643121695944, high=0.7936439542384758)
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    rate, square = successes / count, z * z / count
    centre = (rate + square / 2) / (1 + square)
    half = z * math.sqrt(rate * (1 - rate) / count + square / (4 * count)) / (1 + square)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def bootstrap(
    totals: Sequence[float], counts: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Return the percentile interval of sum(totals) / sum(counts), resampled by cluster.

    `totals` and `counts` have one number for each cluster: the sum of its values, and how many
    these are. Returns `None` for fewer than two clusters, which have no spread.

    >>> bootstrap([3.0], [4])
    >>> bootstrap([2.0, 2.0, 2.0], [2, 2, 2])
    Interval(low=1.0, high=1.0)
    """
    size = len(totals)
    if size < 2:
        return None
    values, weights = np.asarray(totals, float), np.asarray(counts, float)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK // size)
    for start in range(0, resamples, step):
        drawn = rng.integers(size, size=(min(step, resamples - start), size))
        means[start : start + step] = values[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
