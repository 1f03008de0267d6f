"""Two runs on the same items: what changed, and whether chance would do the same."""

from __future__ import annotations

import math

from nemotron_core.errors import NemotronError
from nemotron_evaluate.estimate import Estimate, is_trial, sums
from nemotron_evaluate.statistics import bootstrap_p_value, holm, mcnemar
from nemotron_evaluate.suite.benchmark import Benchmark, Kind, Score, Strict
from nemotron_evaluate.suite.items import Item


class Pair(Strict):
    """One score of two runs, over the items that both have. Values are in points."""

    benchmark: str
    score: str
    title: str
    items: int
    first: float
    """The score of the other run."""
    second: float
    """The score of this run."""
    difference: Estimate
    """This run's score minus the other's, with an interval of paired resampling by item."""
    only_first: int | None
    """Number of items that only the other run solved; `None` unless items are right or wrong."""
    only_second: int | None
    p_value: float
    """Of McNemar's exact test if items are right or wrong, otherwise of the paired bootstrap."""
    adjusted_p_value: float
    """By Holm, over all scores of the comparison."""


def compare(
    benchmarks: dict[str, Benchmark], first: dict[str, list[Item]], second: dict[str, list[Item]]
) -> list[Pair]:
    """Return a pair for each score of the benchmarks that both runs have.

    Raises `NemotronError` if they have none in common or were asked different questions.
    """
    pairs = []
    for name, benchmark in benchmarks.items():
        if name in first and name in second:
            common = _common(name, first[name], second[name])
            pairs += [
                _pair(name, benchmark.title, key, score, common)
                for key, score in benchmark.scores.items()
            ]
    if not pairs:
        raise NemotronError("the two runs have no benchmark in common", where="--against")
    adjusted = holm([pair.p_value for pair in pairs])
    return [
        pair.model_copy(update={"adjusted_p_value": p_value})
        for pair, p_value in zip(pairs, adjusted, strict=True)
    ]


def _common(name: str, first: list[Item], second: list[Item]) -> list[tuple[Item, Item]]:
    others = {item.name: item for item in first}
    common = [(others[item.name], item) for item in second if item.name in others]
    differing = [item.name for other, item in common if other.content != item.content]
    if differing:
        raise NemotronError(
            f"{len(differing)} of the runs' questions differ, such as {differing[0]}",
            where=name,
            remedy="run both with the same suite, harness and data",
        )
    if not common:
        raise NemotronError("the two runs have no item in common", where=name)
    return common


def _clusters(
    name: str, key: str, score: Score, common: list[tuple[Item, Item]]
) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return the values of each item in both runs, without those that only one could be given."""
    try:
        clusters = [(a.values[key], b.values[key]) for a, b in common]
    except KeyError as error:
        raise _differing(name, key) from error
    if score.kind is Kind.F1:
        return clusters
    paired = [(a, b) for a, b in clusters if len(a) == len(b) > 0]
    if not paired or (score.kind is Kind.RATE and len(paired) < len(clusters)):
        raise _differing(name, key)
    return paired


def _differing(name: str, key: str) -> NemotronError:
    return NemotronError(
        f"the runs have different values of {key}",
        where=name,
        remedy="run both with the same suite",
    )


def _pair(name: str, title: str, key: str, score: Score, common: list[tuple[Item, Item]]) -> Pair:
    clusters = _clusters(name, key, score, common)
    first, second = ([pair[side] for pair in clusters] for side in (0, 1))
    only_first = only_second = None
    if score.kind is Kind.RATE and all(map(is_trial, (*first, *second))):
        only_first = sum(a > b for a, b in clusters)
        only_second = sum(a < b for a, b in clusters)
        p_value = mcnemar(only_first, only_second)
    else:
        p_value = bootstrap_p_value(*sums(second), before=sums(first))
    means = [score.scale * math.fsum(totals) / math.fsum(counts)
             for totals, counts in map(sums, (first, second))]  # fmt: skip
    return Pair(
        benchmark=name,
        score=key,
        title=f"{title}, {score.title}" if score.title else title,
        items=len(clusters),
        first=means[0],
        second=means[1],
        difference=Estimate.change(first, second).scaled(score.scale),
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
        adjusted_p_value=p_value,
    )
