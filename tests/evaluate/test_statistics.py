"""Intervals against published values and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nemotron_evaluate.statistics import bootstrap, bootstrap_p_value, holm, mcnemar, wilson


def test_wilson_is_that_of_the_literature() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, count), ends in published.items():
        interval = wilson(successes, count)
        assert (interval.low, interval.high) == pytest.approx(ends, abs=5e-5)


def test_a_bootstrap_by_cluster_covers_the_truth() -> None:
    """Clusters whose values are equal: the interval is as wide as that of the clusters' means."""
    rng = np.random.default_rng(1)
    covered, widths = 0, []
    for trial in range(200):
        means = rng.normal(size=40)
        interval = bootstrap(list(means * 25), [25] * 40, resamples=400, seed=trial)
        assert interval is not None
        covered += interval.low <= 0 <= interval.high
        widths.append(interval.high - interval.low)
    assert 176 <= covered <= 200
    assert np.mean(widths) == pytest.approx(2 * 1.96 / math.sqrt(40), rel=0.1)


def test_a_bootstrap_weighs_clusters_by_their_size() -> None:
    interval = bootstrap([0.0] * 9 + [1000.0], [1] * 9 + [1000], resamples=2000)
    assert interval is not None
    assert interval.high > 0.99  # the large cluster decides wherever it is drawn
    assert interval.low == 0  # and 0.9 ** 10 of the samples do not have it
    again = bootstrap([0.0] * 9 + [1000.0], [1] * 9 + [1000], resamples=2000)
    assert again == interval  # a seed makes it repeatable


def test_mcnemar_is_the_binomial_test() -> None:
    """Against the sum over all outcomes that are no more probable than the observed one."""
    for b, c in ((0, 0), (3, 3), (0, 6), (5, 17), (40, 61)):
        total = b + c
        chances = [math.comb(total, k) / 2**total for k in range(total + 1)]
        expected = sum(chance for chance in chances if chance <= chances[b] * (1 + 1e-9))
        assert mcnemar(b, c) == pytest.approx(expected)
        assert mcnemar(c, b) == mcnemar(b, c)


def test_holm_is_that_of_the_paper() -> None:
    """Holm's procedure by hand: sorted, times the number of those not smaller, never falling."""
    assert holm([0.005, 0.03, 0.02, 0.04]) == pytest.approx([0.02, 0.06, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1, 1]
    assert holm([]) == []


def test_the_bootstraps_p_value_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(3)
    values = [
        bootstrap_p_value(list(rng.normal(size=60)), [1] * 60, resamples=400, seed=trial)
        for trial in range(200)
    ]
    assert 0.4 < np.mean(values) < 0.6
    assert 0.01 < np.mean(np.asarray(values) < 0.05) < 0.1
    assert bootstrap_p_value([2.0], [1]) == 1
