"""The report of an evaluation as Markdown, and the rows that the page in HTML shares with it."""

from __future__ import annotations

from nemotron_evaluate.estimate import Estimate
from nemotron_evaluate.evaluation.pairs import Pair
from nemotron_evaluate.evaluation.result import VERDICTS, Report, ScoreResult
from nemotron_evaluate.statistics import CONFIDENCE
from nemotron_evaluate.suite.benchmark import Benchmark
from nemotron_evaluate.tables import table

SCORES = ("benchmark", "score", "95 % interval", "n", "card", "")
SETTINGS = ("benchmark", "harness and task", "setting", "judge")
PAIRS = ("benchmark", "before", "now", "difference, 95 % interval", "n", "b", "c", "p", "p, Holm")
LEGEND = (
    "b and c are the numbers of items that only the run before and only this run solved. p is of "
    "McNemar's exact test on them, or of a paired bootstrap where items are not right or wrong; "
    "Holm's correction is for all rows."
)


def markdown(report: Report) -> str:
    """Return the report."""
    parts = [
        "# Evaluation",
        "",
        *(f"- {name}: {value}" for name, value in report.server.items() if value),
        "",
        *table(SCORES, score_rows(report)),
        "",
        *remark_lines(report),
    ]
    if report.pairs:
        changed = sum(pair.adjusted_p_value < 1 - CONFIDENCE for pair in report.pairs)
        parts += [
            "",
            "## Against the run before",
            "",
            *(f"- {name}: {value}" for name, value in (report.against or {}).items() if value),
            "",
            *table(PAIRS, map(pair_row, report.pairs)),
            "",
            f"{changed} of {len(report.pairs)} scores differ by more than chance. {LEGEND}",
        ]
    parts += ["", "## Settings", "", *table(SETTINGS, setting_rows(report)), ""]
    return "\n".join(parts)


def score_rows(report: Report) -> list[list[str]]:
    """Return a row of `SCORES` for each score."""
    rows = []
    for result in report.benchmarks.values():
        title = result.benchmark.title
        for score in result.scores.values():
            rows.append(_score_row(title, score))
        if not result.scores:
            for wanted in result.benchmark.scores.values():
                name = f"{title}, {wanted.title}" if wanted.title else title
                rows.append([name, "–", "", "", _number(wanted.card), "no score"])
    return rows


def _score_row(title: str, score: ScoreResult) -> list[str]:
    return [
        f"{title}, {score.title}" if score.title else title,
        _number(score.estimate.value),
        interval(score.estimate),
        f"{score.count:,}",
        _number(score.card),
        VERDICTS[score.verdict] if score.verdict else "",
    ]


def remark_lines(report: Report) -> list[str]:
    """Return a line for each remark of a benchmark."""
    return [
        f"- {result.benchmark.title}: {remark}"
        for result in report.benchmarks.values()
        for remark in result.remarks
    ]


def pair_row(pair: Pair) -> list[str]:
    """Return a row of `PAIRS`."""
    return [
        pair.title,
        _number(pair.first),
        _number(pair.second),
        f"{pair.difference.value:+.2f} {interval(pair.difference)}".strip(),
        f"{pair.items:,}",
        *("" if count is None else str(count) for count in (pair.only_first, pair.only_second)),
        f"{pair.p_value:.3g}",
        f"{pair.adjusted_p_value:.3g}",
    ]


def setting_rows(report: Report) -> list[list[str]]:
    """Return a row of `SETTINGS` for each benchmark."""
    return [_setting(result.benchmark) for result in report.benchmarks.values()]


def _setting(benchmark: Benchmark) -> list[str]:
    settings = [benchmark.endpoint.value]
    if benchmark.shots is not None:
        settings.append(f"{benchmark.shots}-shot")
    if benchmark.limit is not None:
        settings.append(f"the first {benchmark.limit:,} of each task")
    if benchmark.max_tokens is not None:
        settings.append(f"at most {benchmark.max_tokens:,} tokens")
    task = benchmark.file.name if benchmark.file else benchmark.task
    version = f" {benchmark.version}" if benchmark.version else ""
    return [
        benchmark.title,
        f"{benchmark.harness} {task}{version}",
        ", ".join(settings),
        benchmark.judge or "",
    ]


def interval(estimate: Estimate) -> str:
    """Return an interval's ends, or nothing without one."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{_number(estimate.low)} to {_number(estimate.high)}"


def _number(value: float | None) -> str:
    """Return points: with two decimals, which a judge's scale needs."""
    return "" if value is None else f"{value:.2f}"
