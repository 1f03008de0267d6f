"""Two models' logits side by side, when each rank has a slice of the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 32
"""Number of tokens whose logits are held in double precision at once."""


@dataclass(frozen=True)
class LogitsReport:
    """How far the checkpoint's logits are from the source's."""

    error: float
    """Relative error over all logits; infinity if it is not finite."""
    top1: float
    """Fraction of the tokens whose most probable next token is the same."""
    mean_kl: float
    """Mean over the tokens of the divergence in nats of the checkpoint's distribution from the
    source's, over the whole vocabulary; NaN if logits are."""


@dataclass(frozen=True)
class VocabularySlice:
    """What the whole comparison needs of one slice of the vocabulary.

    Tensors are [T], one for each token; p is the source's distribution and q the checkpoint's.
    """

    difference: float
    """Sum of the squared differences of the logits."""
    square: float
    """Sum of the source's squared logits."""
    top_values: tuple[Tensor, Tensor]
    """Largest logits of p and q."""
    top_ids: tuple[Tensor, Tensor]
    """Their token ids."""
    log_sums: tuple[Tensor, Tensor]
    """Logarithms of the sums of the exponentials of the logits of p and q."""
    excess: Tensor
    """Mean of p's logit minus q's, weighted with p within the slice."""

    @classmethod
    def of(cls, actual: Tensor, expected: Tensor, start: int) -> VocabularySlice:
        """Compare logits [T, V'] of the token ids from `start` on."""
        chunks = zip(torch.split(actual, CHUNK), torch.split(expected, CHUNK), strict=True)
        return cls._together([cls._of_chunk(q.double(), p.double(), start) for q, p in chunks])

    @classmethod
    def _of_chunk(cls, q: Tensor, p: Tensor, start: int) -> VocabularySlice:
        tops = (p.max(-1), q.max(-1))
        log_sums = (p.logsumexp(-1), q.logsumexp(-1))
        difference = p - q
        weights = (p - log_sums[0][:, None]).exp()
        return cls(
            difference=float(difference.square().sum()),
            square=float(p.square().sum()),
            top_values=(tops[0].values, tops[1].values),
            top_ids=(tops[0].indices + start, tops[1].indices + start),
            log_sums=log_sums,
            excess=(weights * difference).sum(-1),
        )

    @classmethod
    def _together(cls, chunks: list[VocabularySlice]) -> VocabularySlice:
        def pairs(name: str) -> tuple[Tensor, Tensor]:
            sides = zip(*(getattr(chunk, name) for chunk in chunks), strict=True)
            first, second = (torch.cat(side) for side in sides)
            return first, second

        return cls(
            difference=sum(chunk.difference for chunk in chunks),
            square=sum(chunk.square for chunk in chunks),
            top_values=pairs("top_values"),
            top_ids=pairs("top_ids"),
            log_sums=pairs("log_sums"),
            excess=torch.cat([chunk.excess for chunk in chunks]),
        )


def join(slices: Sequence[VocabularySlice]) -> LogitsReport:
    """Return the comparison over the vocabulary that some slices make up.

    The divergence is the mean under P of log P - log Q. Each logarithm is a logit minus the log-sum
    over the vocabulary, so the slices' means are weighted with P's mass in them.
    """
    top_ids = []
    for side in (0, 1):
        values = torch.stack([part.top_values[side] for part in slices])
        ids = torch.stack([part.top_ids[side] for part in slices])
        top_ids.append(ids.gather(0, values.max(0, keepdim=True).indices))
    parts = [torch.stack([part.log_sums[side] for part in slices]) for side in (0, 1)]
    log_sums = [part.logsumexp(0) for part in parts]
    mass = (parts[0] - log_sums[0]).exp()
    excess = (mass * torch.stack([part.excess for part in slices])).sum(0)
    kl = excess - log_sums[0] + log_sums[1]
    mean_kl = float(kl.mean())
    return LogitsReport(
        error=_error(
            math.sqrt(sum(part.difference for part in slices)),
            math.sqrt(sum(part.square for part in slices)),
        ),
        top1=float((top_ids[0] == top_ids[1]).double().mean()),
        mean_kl=0.0 if mean_kl < 0 else mean_kl,  # by rounding; `max` would take NaN for 0
    )


def _error(difference: float, size: float) -> float:
    if not math.isfinite(difference):
        return math.inf
    return difference / size if size else (math.inf if difference else 0.0)
