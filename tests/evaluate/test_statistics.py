"""Intervals against published values and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nemotron_evaluate.statistics import bootstrap, wilson


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
