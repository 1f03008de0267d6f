"""How far the second server's distribution of one token is from the first server's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

SMALLEST_REST = 1e-6
"""Least probability of the rest bucket. A sum of rounded probabilities is not more exact, and a
larger rest only lowers the bound."""


def kl_lower_bound(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Return a lower bound of KL(first ‖ second) in nats, from some log-probabilities of each.

    The tokens that both name are kept apart, and all others are put into one bucket, whose
    probability is what remains to 1. Merging outcomes never increases the divergence (the log-sum
    inequality), so the result is never more than the divergence over the whole vocabulary.

    >>> half = math.log(0.5)
    >>> kl_lower_bound({1: half, 2: half}, {1: half, 2: half})
    0.0
    >>> round(kl_lower_bound({1: math.log(0.9)}, {1: half}), 4)  # 0.9 ln 1.8 + 0.1 ln 0.2
    0.3681
    """
    total = first_known = second_known = 0.0
    for id_ in first.keys() & second.keys():
        probability = math.exp(first[id_])
        total += probability * (first[id_] - second[id_])
        first_known += probability
        second_known += math.exp(second[id_])
    first_rest = max(1 - first_known, SMALLEST_REST)
    second_rest = max(1 - second_known, SMALLEST_REST)
    return max(0.0, total + first_rest * math.log(first_rest / second_rest))


def common_prefix(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the number of tokens with which both answers begin.

    >>> common_prefix(["The", " sky", " is"], ["The", " sky", " was"])
    2
    """
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
