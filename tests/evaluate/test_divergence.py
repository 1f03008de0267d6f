"""The divergence from some log-probabilities, beside that of the whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nemotron_evaluate.comparison.divergence import kl_lower_bound
from nemotron_evaluate.comparison.side import Token

VOCABULARY = 400


def distributions(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of a peaked distribution and of one near it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=4, size=VOCABULARY)
    both = logits, logits + rng.normal(scale=noise, size=VOCABULARY)
    return both[0] - np.logaddexp.reduce(both[0]), both[1] - np.logaddexp.reduce(both[1])


def top(log_probs: np.ndarray, count: int) -> dict[int, float]:
    return {int(id_): float(log_probs[id_]) for id_ in np.argsort(-log_probs)[:count]}


@pytest.mark.parametrize("noise", [0.01, 0.3, 2.0])
def test_it_is_a_lower_bound_that_rises_to_the_whole(noise: float) -> None:
    for seed in range(30):
        p, q = distributions(seed, noise)
        whole = float(np.sum(np.exp(p) * (p - q)))
        bounds = [kl_lower_bound(top(p, k), top(q, k)) for k in (1, 5, 20, 100, VOCABULARY)]
        assert all(0 <= bound <= whole + 1e-6 for bound in bounds)
        assert bounds[-1] == pytest.approx(whole, abs=1e-5)
    assert bounds[3] > 0.9 * whole


def test_rounded_log_probabilities_change_little() -> None:
    """Servers send single precision; the rest of a sharp distribution is then mostly rounding."""
    for seed in range(30):
        p, q = distributions(seed, 0.1)
        exact = kl_lower_bound(top(p, 20), top(q, 20))
        rounded = [
            {id_: float(np.float32(value)) for id_, value in top(x, 20).items()} for x in (p, q)
        ]
        assert kl_lower_bound(*rounded) == pytest.approx(exact, abs=2e-6)


def test_nothing_in_common_is_bounded_by_the_rest() -> None:
    """Both rests are everything, so the bound says nothing, and is 0 and not infinite."""
    assert kl_lower_bound({1: math.log(0.9)}, {2: math.log(0.9)}) == 0


def test_the_top_token_of_equals_is_the_first_by_id() -> None:
    assert Token(3, "", -1.0, {9: -0.5, 4: -0.5, 3: -1.0}).top == 4
