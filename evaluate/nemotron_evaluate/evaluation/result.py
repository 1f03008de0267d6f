"""The numbers of an evaluation's report, and how they follow from the items."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemotron_evaluate.estimate import Estimate
from nemotron_evaluate.evaluation.pairs import Pair
from nemotron_evaluate.suite.benchmark import Benchmark, Kind, Score, Strict
from nemotron_evaluate.suite.items import Item

Verdict = Literal["inside", "below", "above"]
"""Where a score is: its interval contains the card's value, or is below or above it."""
VERDICTS: dict[Verdict, str] = {
    "inside": "the card's value is inside the interval",
    "below": "below the card's value",
    "above": "above the card's value",
}
TELLING = 3.0
"""Points. With a wider interval on either side the report says that there are too few items."""


class ScoreResult(Strict):
    """One number of a benchmark, in points."""

    title: str
    estimate: Estimate
    count: int
    """Number of values that the estimate is the mean of; of an F1, the conversations."""
    card: float | None
    verdict: Verdict | None
    """`None` without a value of the card or without an interval."""


class BenchmarkResult(Strict):
    """What a benchmark gave, with the settings that it ran with."""

    benchmark: Benchmark
    items: int | None = None
    """Number of items that were scored, or `None` if the benchmark did not run here."""
    scores: dict[str, ScoreResult] = Field(default_factory=dict)
    remarks: list[str] = Field(default_factory=list)
    """What a reader has to know before trusting the numbers."""


class Report(Strict):
    """The report of one run, and of its comparison with another one."""

    format_version: Literal[1] = 1
    server: dict[str, str | None]
    """Identity of the server: model, engine, checkpoint, template."""
    harnesses: dict[str, str]
    """SHA-256 of the lock that a harness's environment was made from."""
    benchmarks: dict[str, BenchmarkResult]
    against: dict[str, str | None] | None = None
    """Identity of the server of the other run."""
    pairs: list[Pair] = Field(default_factory=list)


def benchmark_result(
    benchmark: Benchmark, items: list[Item], judge: str | None = None
) -> BenchmarkResult:
    """Return the scores of a benchmark with at least one item, of which each score has a value.

    `judge` is the model that judged the answers. A score by another judge than the card's is not
    compared with the card's value.
    """
    scores = {key: _score(key, score, items) for key, score in benchmark.scores.items()}
    remarks = []
    if benchmark.judge is not None and judge is not None:
        remarks.append(f"judged by {judge}")
        unread = sum(not all(item.values[name] for name in scores) for item in items)
        if unread:
            remarks.append(f"ratings that could not be read are left out, of {unread:,} items")
        if judge != benchmark.judge:
            remarks.append(f"the card's judge is {benchmark.judge}: its values say nothing here")
            scores = {
                name: score.model_copy(update={"verdict": None}) for name, score in scores.items()
            }
    if benchmark.items is not None and len(items) != benchmark.items:
        remarks.append(f"{len(items):,} of the benchmark's {benchmark.items:,} items")
    widths = [width for score in scores.values() if (width := score.estimate.half_width)]
    scale = max(score.scale for score in benchmark.scores.values())
    if widths and max(widths) > TELLING * scale / 100:
        remarks.append(
            f"n = {len(items):,} is too small to tell a difference below "
            f"{max(widths):.{1 if scale == 100 else 2}f} points"
        )
    if benchmark.left_open:
        remarks.append(benchmark.left_open)
    return BenchmarkResult(benchmark=benchmark, items=len(items), scores=scores, remarks=remarks)


def _score(name: str, score: Score, items: list[Item]) -> ScoreResult:
    values = [cluster for item in items if (cluster := item.values[name])]
    mean = Estimate.mean if score.kind is Kind.RATE else Estimate.resampled
    estimate = mean(values).scaled(score.scale)
    return ScoreResult(
        title=score.title,
        estimate=estimate,
        count=len(items) if score.kind is Kind.F1 else sum(map(len, values)),
        card=score.card,
        verdict=_verdict(estimate, score.card),
    )


def _verdict(estimate: Estimate, card: float | None) -> Verdict | None:
    if card is None or estimate.low is None or estimate.high is None:
        return None
    if estimate.high < card:
        return "below"
    return "above" if estimate.low > card else "inside"
