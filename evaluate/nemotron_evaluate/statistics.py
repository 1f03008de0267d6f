"""Confidence intervals and tests; pure functions.

Tokens of one text, instructions of one prompt and turns of one conversation are not independent.
What is resampled is therefore always the whole text, prompt or conversation, here called a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
"""Confidence level of every interval."""
RESAMPLES = 10_000
"""Number of samples that a bootstrap draws."""
Sums = tuple[Sequence[float], Sequence[float]]
"""The sum of each cluster's values, and how many these are."""
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
    totals: Sequence[float],
    counts: Sequence[float],
    *,
    before: Sums | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Return the percentile interval of sum(totals) / sum(counts), resampled by cluster.

    `totals` and `counts` have one number for each cluster: the sum of its values, and how many
    these are. With those of the same clusters `before`, it is the interval of the difference, for
    which the same clusters are drawn on both sides. Returns `None` for fewer than two clusters,
    which have no spread.

    >>> bootstrap([3.0], [4])
    >>> bootstrap([2.0, 2.0, 2.0], [2, 2, 2])
    Interval(low=1.0, high=1.0)
    """
    if len(totals) < 2:
        return None
    means = _resampled((totals, counts), before, resamples, seed)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def bootstrap_p_value(
    totals: Sequence[float],
    counts: Sequence[float],
    *,
    before: Sums | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Return the two-sided p-value of a mean, or a difference, of 0, as `bootstrap` resamples it.

    It is twice the smaller fraction of resampled means on one side of 0, 0 itself included, with
    the observed mean counted as a sample, so it is never 0. A single cluster tells nothing: 1.

    >>> bootstrap_p_value([1.0, -1.0, 1.0, -1.0], [1, 1, 1, 1])
    1.0
    >>> bootstrap_p_value([1.0] * 9, [1] * 9)
    0.00019998000199980003
    """
    if len(totals) < 2:
        return 1.0
    means = _resampled((totals, counts), before, resamples, seed)
    side = min(int(np.sum(means <= 0)), int(np.sum(means >= 0)))
    return min(1.0, 2 * (side + 1) / (resamples + 1))


def _resampled(
    sums: Sums, before: Sums | None, resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    size = len(sums[0])
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK // size)
    for start in range(0, resamples, step):
        drawn = rng.integers(size, size=(min(step, resamples - start), size))
        part = _means(sums, drawn)
        means[start : start + step] = part if before is None else part - _means(before, drawn)
    return means


def _means(sums: Sums, drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    totals, counts = (np.asarray(numbers, float)[drawn].sum(axis=1) for numbers in sums)
    # A sample may have drawn only clusters without values.
    means: npt.NDArray[np.float64] = np.divide(
        totals, counts, out=np.zeros_like(totals), where=counts > 0
    )
    return means


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (binomial, one half).

    The arguments are the numbers of items that only the first and only the second one solved.

    >>> mcnemar(1, 9)
    0.021484375
    >>> mcnemar(0, 0)
    1.0
    """
    count = only_first + only_second
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << count))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order of the arguments (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
