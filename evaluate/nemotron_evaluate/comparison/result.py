"""The numbers of a comparison, and how they are computed from what two servers returned."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from nemotron_core.errors import NemotronError
from nemotron_evaluate.comparison.divergence import common_prefix, kl_lower_bound
from nemotron_evaluate.comparison.side import Continued, Scored, Side, Token, joined_text
from nemotron_evaluate.estimate import Estimate

WORST = 20
"""Number of tokens that the report shows, those with the largest divergence, if there is any."""
CONTEXT = 24
"""Number of tokens before such a token that are shown with it."""
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


class WorstToken(BaseModel):
    """A token where the two distributions are furthest apart."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: int
    """Number of the text, from 0."""
    position: int
    """Position of the token in the text, from 0."""
    kl: float
    context: str
    token: str
    log_prob_first: float
    log_prob_second: float
    top_first: int
    """Id of the most probable token."""
    top_second: int


class Answers(BaseModel):
    """How far the greedy answers agree."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    equal: Estimate
    """Fraction of answers whose tokens are all equal."""
    common_prefix: Estimate
    """Mean number of tokens before the first different one."""
    mean_length: float
    """Mean number of tokens of the first server's answers."""


class Result(BaseModel):
    """The report of a comparison. Divergences are in nats, of the first server from the second."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = 1
    first: dict[str, str | None]
    """Identity of the first server: model, engine, checkpoint, template."""
    second: dict[str, str | None]
    alternatives: int
    texts: int
    tokens: int
    mean_kl: Estimate
    """Lower bound of the mean divergence over tokens."""
    kl_percentiles: dict[str, float]
    top1: Estimate
    """Fraction of tokens whose most probable token is the same."""
    perplexity_first: float
    perplexity_second: float
    perplexity_ratio: Estimate
    """Perplexity of the second server over that of the first."""
    rms_probability: float
    """Root mean square of the difference of the probabilities of the text's own tokens."""
    answers: Answers | None
    worst: list[WorstToken]


@dataclass
class TokenTable:
    """One row for each token; the columns of `tokens.npz`."""

    text: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    id: list[int] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    log_prob_first: list[float] = field(default_factory=list)
    log_prob_second: list[float] = field(default_factory=list)
    top_equal: list[bool] = field(default_factory=list)

    def add(self, text: int, position: int, first: Token, second: Token) -> float:
        """Add a token and return its divergence."""
        kl = kl_lower_bound(first.log_probs, second.log_probs)
        self.text.append(text)
        self.position.append(position)
        self.id.append(first.id_)
        self.kl.append(kl)
        self.log_prob_first.append(first.log_prob)
        self.log_prob_second.append(second.log_prob)
        self.top_equal.append(first.top == second.top)
        return kl


def compare(first: Side, second: Side, alternatives: int) -> tuple[Result, TokenTable]:
    """Compare what two servers returned for the same rows.

    Raises `NemotronError` if the rows differ or an answer is not what was asked for.
    """
    if first.rows != second.rows:
        raise NemotronError("the two runs have different texts", where=second.folder)
    manifests = first.manifest, second.manifest
    table, worst = TokenTable(), list[tuple[float, int, WorstToken]]()
    lengths: list[tuple[int, int, int]] = []
    texts = 0
    for a, b in _pairs(first, second):
        if isinstance(a, Scored) and isinstance(b, Scored):
            _add_text(texts, a, b, table, worst)
            texts += 1
        elif isinstance(a, Continued) and isinstance(b, Continued):
            lengths.append((len(a.tokens), len(b.tokens), common_prefix(a.tokens, b.tokens)))
    text, kl = np.asarray(table.text), np.asarray(table.kl)
    log_probs = np.asarray(table.log_prob_first), np.asarray(table.log_prob_second)
    counts = _by_text(text, np.ones_like(kl))
    ratio = Estimate.of(_by_text(text, log_probs[0] - log_probs[1]), counts)
    result = Result(
        first=_identity(manifests[0].server),
        second=_identity(manifests[1].server),
        alternatives=alternatives,
        texts=texts,
        tokens=len(kl),
        mean_kl=Estimate.of(_by_text(text, kl), counts),
        kl_percentiles={
            name: float(np.quantile(kl, fraction)) for name, fraction in PERCENTILES.items()
        },
        top1=Estimate.of(_by_text(text, np.asarray(table.top_equal, float)), counts),
        perplexity_first=math.exp(-log_probs[0].mean()),
        perplexity_second=math.exp(-log_probs[1].mean()),
        perplexity_ratio=ratio.exp(),
        rms_probability=float(np.sqrt(np.mean((np.exp(log_probs[0]) - np.exp(log_probs[1])) ** 2))),
        answers=_answers(lengths),
        worst=[token for _kl, _tie, token in sorted(worst, reverse=True)],
    )
    return result, table


def _pairs(first: Side, second: Side) -> Iterator[tuple[Scored | Continued, Scored | Continued]]:
    yield from zip(first.results(), second.results(), strict=True)


def _add_text(
    number: int,
    first: Scored,
    second: Scored,
    table: TokenTable,
    worst: list[tuple[float, int, WorstToken]],
) -> None:
    pairs = zip(first.tokens, second.tokens, strict=True)
    for index, (a, b) in enumerate(pairs):
        kl = table.add(number, index + 1, a, b)
        if kl == 0 or (len(worst) == WORST and kl <= worst[0][0]):
            continue
        before = itertools.islice(first.tokens, max(0, index - CONTEXT), index)
        token = WorstToken(
            text=number,
            position=index + 1,
            kl=kl,
            context=joined_text(token.text for token in before),
            token=joined_text([a.text]),
            log_prob_first=a.log_prob,
            log_prob_second=b.log_prob,
            top_first=a.top,
            top_second=b.top,
        )
        entry = (kl, -len(table.kl), token)  # of equal ones the earlier token counts as worse
        (heapq.heappush if len(worst) < WORST else heapq.heapreplace)(worst, entry)


def _by_text(text: npt.NDArray[np.int_], values: npt.NDArray[np.float64]) -> list[float]:
    return [float(total) for total in np.bincount(text, weights=values)]


def _identity(server: dict[str, str | int | float | bool | None]) -> dict[str, str | None]:
    return {name: None if value is None else str(value) for name, value in server.items()}


def _answers(lengths: list[tuple[int, int, int]]) -> Answers | None:
    if not lengths:
        return None
    ones = [1.0] * len(lengths)
    equal = sum(a == b == prefix for a, b, prefix in lengths)
    return Answers(
        count=len(lengths),
        equal=Estimate.fraction(equal, len(lengths)),
        common_prefix=Estimate.of([float(prefix) for *_, prefix in lengths], ones),
        mean_length=sum(first for first, *_ in lengths) / len(lengths),
    )
