"""The report of an evaluation as one self-contained HTML file with plots."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nemotron_evaluate.estimate import Estimate
from nemotron_evaluate.evaluation.report import (
    LEGEND,
    PAIRS,
    SCORES,
    SETTINGS,
    pair_row,
    remark_lines,
    score_rows,
    setting_rows,
)
from nemotron_evaluate.evaluation.result import Report

WIDTH, LEFT, RIGHT, ROW, AXIS = 720, 230, 20, 30, 34
"""Measures of a plot in pixels: all, the names' column, the margin, a row, the axis below."""
OURS, CARD = "#1b7837", "#c26b00"
STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #8888 }
th:first-child, td:first-child, td:last-child { text-align: left }
figure { margin: 0 0 1rem }
svg { max-width: 100%; height: auto; font-size: 13px; fill: currentColor }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem }
dd { margin: 0; overflow-wrap: anywhere }
"""
Row = tuple[str, Estimate, float | None]
"""Name, estimate, and the value to compare with."""


def html(report: Report) -> str:
    """Return the page."""
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in report.server.items()
    )
    scores: dict[float, list[Row]] = {}
    for result in report.benchmarks.values():
        for name, score in result.scores.items():
            scale = result.benchmark.scores[name].scale
            title = f"{result.benchmark.title}, {score.title}".removesuffix(", ")
            scores.setdefault(scale, []).append((title, score.estimate, score.card))
    plots = [
        interval_plot("Scores, the card's values as lines", rows, 0, 100 if scale == 100 else 10)
        for scale, rows in sorted(scores.items(), reverse=True)
    ]
    remarks = "".join(
        f"<li>{escape(line.removeprefix('- '))}</li>" for line in remark_lines(report)
    )
    body = (
        f"<h1>Evaluation</h1><dl>{facts}</dl>{_figures(plots)}"
        f"{_table(SCORES, score_rows(report))}<ul>{remarks}</ul>"
    )
    if report.pairs:
        body += (
            f"<h2>Against the run before</h2>{_figures([_difference_plot(report)])}"
            f"{_table(PAIRS, list(map(pair_row, report.pairs)))}<p>{escape(LEGEND)}</p>"
        )
    body += f"<h2>Settings</h2>{_table(SETTINGS, setting_rows(report))}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _difference_plot(report: Report) -> str:
    rows: list[Row] = [(pair.title, pair.difference, 0.0) for pair in report.pairs]
    ends = [abs(end) for _, e, _ in rows for end in (e.value, e.low, e.high) if end is not None]
    reach = max(1.0, *ends) * 1.05
    return interval_plot("Differences in points", rows, -reach, reach)


def interval_plot(title: str, rows: Sequence[Row], low: float, high: float) -> str:
    """Return an SVG with a point, its interval and a line for the value to compare with."""

    def x(value: float) -> float:
        inside = min(max(value, low), high)
        return round(LEFT + (inside - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    height = ROW * len(rows) + AXIS
    bottom = height - AXIS + 6
    parts = []
    for step in range(5):
        tick = low + (high - low) * step / 4
        parts.append(
            f'<path d="M{x(tick)} 0V{bottom}" stroke="#8884"/>'
            f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle">{tick:.3g}</text>'
        )
    for number, (name, estimate, other) in enumerate(rows):
        y = ROW * number + ROW / 2
        parts.append(f'<text x="{LEFT - 12}" y="{y + 5}" text-anchor="end">{escape(name)}</text>')
        if other is not None:
            parts.append(f'<path d="M{x(other)} {y - 11}v22" stroke="{CARD}" stroke-width="2"/>')
        if estimate.low is not None and estimate.high is not None:
            parts.append(
                f'<path d="M{x(estimate.low)} {y}H{x(estimate.high)}" stroke="{OURS}" '
                'stroke-width="3"/>'
            )
        parts.append(f'<circle cx="{x(estimate.value)}" cy="{y}" r="5" fill="{OURS}"/>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _figures(plots: Sequence[str]) -> str:
    return "".join(f"<figure>{plot}</figure>" for plot in plots)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
