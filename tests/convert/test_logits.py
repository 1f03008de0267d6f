"""Logits compared by slices of the vocabulary, against the whole at once."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from nemotron_convert.verification.logits import VocabularySlice, join


@pytest.mark.parametrize("slices", [1, 3, 16])
def test_slices_give_what_the_whole_gives(slices: int) -> None:
    generator = torch.Generator().manual_seed(slices)
    expected = 5 * torch.randn(40, 64, generator=generator)
    actual = expected + 0.5 * torch.randn(40, 64, generator=generator)
    p, q = expected.double().log_softmax(-1), actual.double().log_softmax(-1)
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    bounds = torch.linspace(0, 64, slices + 1).int().tolist()
    report = join(
        [
            VocabularySlice.of(actual[:, start:stop], expected[:, start:stop], start)
            for start, stop in itertools.pairwise(bounds)
        ]
    )
    assert report.mean_kl == pytest.approx(float(kl), rel=1e-9)
    assert report.top1 == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    norm = float((actual - expected).double().norm() / expected.double().norm())
    assert report.error == pytest.approx(norm, rel=1e-6)


def test_equal_logits_have_no_divergence() -> None:
    logits = 30 * torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    report = join([VocabularySlice.of(logits, logits, 0)])
    assert (report.mean_kl, report.top1, report.error) == (0, 1, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_not_called_equal(bad: float) -> None:
    expected = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    actual = expected.clone()
    actual[35, 6] = bad
    halves = [slice(0, 4), slice(4, 8)]
    report = join([VocabularySlice.of(actual[:, s], expected[:, s], s.start) for s in halves])
    assert not math.isfinite(report.mean_kl)
    assert report.error == math.inf


def test_a_head_of_zeros() -> None:
    zeros, ones = torch.zeros(3, 8), torch.ones(3, 8)
    assert join([VocabularySlice.of(zeros, zeros, 0)]).error == 0
    assert join([VocabularySlice.of(ones, zeros, 0)]).error == math.inf
