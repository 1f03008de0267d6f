"""What a draft makes of a profile's speed at batch 1, as an upper limit.

A step checks `tokens` proposals together with the next token. If each one is right with the
probability a, given that those before it were, a step gives (1 - a^(tokens + 1)) / (1 - a) tokens.
(Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", ICML
2023, equation 1.) It takes the step of the model, and `tokens` steps of the draft.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_build.plan import ServingPlan, make_plan, shape_of
from nemotron_build.profile import NGRAM
from nemotron_convert.plan import GIB
from nemotron_core.errors import NemotronError
from nemotron_core.family import FAMILY


def tokens_per_step(acceptance: float, tokens: int) -> float:
    """Return the mean number of tokens that a step gives.

    >>> round(tokens_per_step(0.5, 2), 2), tokens_per_step(1.0, 4)
    (1.75, 5.0)
    """
    return math.fsum(acceptance**number for number in range(tokens + 1))


@dataclass(frozen=True)
class DraftPlan:
    """A plan, and a draft for it. All rates are upper limits."""

    plan: ServingPlan
    draft: ServingPlan | None
    """The draft on the same processors. `None` means that it is copied from the text."""
    tokens: int
    """Most tokens that are proposed in a step."""
    acceptance: float
    """Probability that a proposed token is right if those before it are."""

    @property
    def tokens_per_step(self) -> float:
        return tokens_per_step(self.acceptance, self.tokens)

    @property
    def step_seconds(self) -> float:
        """Seconds of one step at batch 1: what the draft takes, and the check of its tokens."""
        proposing = self.tokens * self.draft.step_seconds(1) if self.draft else 0.0
        return proposing + self.plan.step_seconds(1, 1 + self.tokens)

    @property
    def gain(self) -> float:
        """Tokens per second at batch 1 over those without a draft."""
        return self.tokens_per_step * self.plan.step_seconds(1) / self.step_seconds

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for `--json`."""
        return {
            "draft_tokens": self.tokens,
            "acceptance": self.acceptance,
            "tokens_per_step": self.tokens_per_step,
            "step_seconds": self.step_seconds,
            "tokens_per_second": self.tokens_per_step / self.step_seconds,
            "gain": self.gain,
            "weights_bytes_per_gpu": self.draft.weights if self.draft else 0,
        }

    def __str__(self) -> str:
        """Return the figures as lines of the plan's table."""
        memory = f", {self.draft.weights / GIB:.1f} GiB of weights more" if self.draft else ""
        of_proposed = (self.tokens_per_step - 1) / self.tokens
        rows = [
            ("draft", f"{self.tokens} tokens proposed in a step, each right with {self.acceptance}"
             f"{memory}"),
            ("", f"{self.tokens_per_step:.2f} tokens per step, {of_proposed:.0%} of the proposed"),
            ("with it, batch 1", f"{self.step_seconds * 1e3:.1f} ms per step, "
             f"{self.tokens_per_step / self.step_seconds:,.1f} tokens/s: {self.gain:.2f} times "
             "those without"),
        ]  # fmt: skip
        return "\n".join(f"{name:<18}{text}" for name, text in rows)


def draft_plan(plan: ServingPlan, draft: str, tokens: int, acceptance: float) -> DraftPlan:
    """Return the plan with a draft: a model of the family, a checkpoint's folder, or `ngram`.

    Raises `NemotronError` if there is no such draft, or a number makes no sense.
    """
    if not 0 <= acceptance <= 1:
        raise NemotronError(
            f"{acceptance} is no probability", where="--acceptance", remedy="give 0 to 1"
        )
    if draft == NGRAM:
        return DraftPlan(plan, None, tokens, acceptance)
    if draft not in FAMILY and not Path(draft).is_dir():
        raise NemotronError(
            f"no draft {draft!r}",
            where="--draft",
            remedy=f"use {NGRAM}, a checkpoint, or one of {', '.join(FAMILY)}",
        )
    shape, vocab_size = shape_of(None if draft in FAMILY else Path(draft), draft)
    small = make_plan(plan.profile, plan.hardware, shape=shape, vocab_size=vocab_size)
    return DraftPlan(plan, small, tokens, acceptance)
