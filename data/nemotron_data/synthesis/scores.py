"""The scores in a reward model's answer, and the reward as their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""Attributes of HelpSteer2, in the order in which Nemotron-4-340B-Reward gives their scores."""
Attribute = Literal["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
WEIGHTS: dict[Attribute, float] = {
    "helpfulness": 0.3,
    "correctness": 0.74,
    "coherence": 0.46,
    "complexity": 0.47,
    "verbosity": -0.33,
}
"""Weights of the attributes in the reward, from the reward model's card."""


def read_scores(text: str) -> dict[str, float]:
    """Return the five scores in a reward model's answer.

    Raises `ValueError` unless each of them is there exactly once and finite.

    >>> read_scores("helpfulness:3.5,correctness:3.4,coherence:4,complexity:1.5,verbosity:2")
    {'helpfulness': 3.5, 'correctness': 3.4, 'coherence': 4.0, 'complexity': 1.5, 'verbosity': 2.0}
    """
    scores: dict[str, float] = {}
    for part in text.split(","):
        name, _colon, value = (word.strip() for word in part.partition(":"))
        if name not in ATTRIBUTES or name in scores:
            raise ValueError(f"no place for {part.strip()[:40]!r} in the scores")
        scores[name] = float(value)
        if not math.isfinite(scores[name]):
            raise ValueError(f"{name} is {value}")
    if missing := [name for name in ATTRIBUTES if name not in scores]:
        raise ValueError(f"{', '.join(missing)} not in the scores")
    return scores


def weighted_sum(scores: Mapping[str, float], weights: Mapping[Attribute, float]) -> float:
    """Return the weighted sum of the scores; an attribute without a weight does not count."""
    return sum(weight * scores[name] for name, weight in weights.items())
