"""The gain of a draft, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_build.draft_plan import draft_plan, tokens_per_step
from nemotron_build.hardware import Hardware
from nemotron_build.plan import make_plan, plans
from nemotron_build.profile import load_profile
from nemotron_core.errors import NemotronError
from nemotron_core.family import FAMILY

SMALL = "nemotron-mini-4b-instruct"


def test_the_tokens_of_a_step() -> None:
    assert tokens_per_step(0.0, 4) == 1
    assert tokens_per_step(1.0, 4) == 5
    assert tokens_per_step(0.7, 4) == pytest.approx((1 - 0.7**5) / 0.3)


def test_a_4b_drafts_for_the_340b() -> None:
    (plan,) = plans(load_profile("h100-fp8-tp8"), [], None)
    with_draft = draft_plan(plan, SMALL, 4, 0.7)
    # At batch 1 both wait for the memory: a check of five tokens takes as long as one token.
    assert plan.step_seconds(1, 5) == plan.step_seconds(1)
    # The draft's linear layers in FP8 and its head in BF16, over eight GPUs, and 4096 tokens of
    # keys and values: 32 layers of one head of 128 in FP8 on each GPU.
    linear = 32 * (3072 * (24 + 2 * 8) * 128 + 3072 * 3072 + 2 * 3072 * 9216)
    read = linear / 8 + 2 * 256_000 * 3072 / 8 + 4096 * 2 * 32 * 128 * 2
    assert with_draft.draft is not None
    assert with_draft.draft.step_seconds(1) == pytest.approx(read / 3.35e12, rel=0.01)
    seconds = plan.step_seconds(1) + 4 * with_draft.draft.step_seconds(1)
    assert with_draft.step_seconds == pytest.approx(seconds)
    gain = (1 - 0.7**5) / 0.3 * plan.step_seconds(1) / seconds
    assert with_draft.gain == pytest.approx(gain)
    assert 2.5 < gain < 2.77


def test_copied_tokens_cost_only_their_check() -> None:
    (plan,) = plans(load_profile("h100-fp8-tp8"), [], None)
    with_draft = draft_plan(plan, "ngram", 4, 0.5)
    assert with_draft.gain == pytest.approx(1 + 0.5 + 0.25 + 0.125 + 0.0625)
    assert with_draft.as_dict()["weights_bytes_per_gpu"] == 0
    assert "1.94 tokens per step, 23% of the proposed" in str(with_draft)


def test_a_check_takes_longer_where_arithmetic_is_the_limit() -> None:
    slow = Hardware("slow", 80 << 30, 1e12, {"bf16": 1e12})
    plan = make_plan(load_profile("one-gpu"), slow, shape=FAMILY[SMALL].config)
    assert plan.step_seconds(1, 5) == pytest.approx(5 * plan.step_seconds(1))
    assert draft_plan(plan, "ngram", 4, 0.5).gain < 1


def test_a_checkpoint_as_the_draft(checkpoint_tp8: Path) -> None:
    (plan,) = plans(load_profile("cpu"), [], checkpoint_tp8)
    with_draft = draft_plan(plan, str(checkpoint_tp8), 1, 1.0)
    assert with_draft.gain == pytest.approx(1)  # two tokens in the time of two


@pytest.mark.parametrize(
    ("draft", "acceptance", "error"),
    [("nothing", 0.5, "no draft 'nothing'"), ("ngram", 1.5, "1.5 is no probability")],
)
def test_drafts_that_are_none(draft: str, acceptance: float, error: str) -> None:
    (plan,) = plans(load_profile("h100-fp8-tp8"), [], None)
    with pytest.raises(NemotronError, match=error):
        draft_plan(plan, draft, 4, acceptance)
