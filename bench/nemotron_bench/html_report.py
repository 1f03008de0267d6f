"""A report as one self-contained HTML file with tables and SVG plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from nemotron_bench.results import LevelResult, Report
from nemotron_bench.statistics import LATENCIES, QUANTILES

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 46
COLOURS = ("#1b7837", "#c26b00", "#5e3c99")
STYLE = """
:root { color-scheme: light dark; --line: #8888; --ink: currentColor }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
th { font-weight: 600 }
figure { display: inline-block; margin: 0 .8rem 1rem 0 }
svg { max-width: 100%; height: auto; font-size: 12px; fill: var(--ink) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem }
dd { margin: 0; overflow-wrap: anywhere }
dt { opacity: .7 }
"""


@dataclass(frozen=True)
class Series:
    name: str
    points: list[tuple[float, float]]


def html(report: Report) -> str:
    """Return the page."""
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in report.facts().items()
    )
    figures = "".join(f"<figure>{plot}</figure>" for plot in _plots(report.levels))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Bench of {escape(report.target)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(report.target)}</h1>{figures}"
        f"<h2>Throughput</h2>{_throughputs(report.levels)}"
        f"<h2>Latency, milliseconds</h2>{_latencies(report.levels)}"
        f"<h2>What was measured, and on what</h2><dl>{facts}</dl></body></html>\n"
    )


def _plots(levels: Sequence[LevelResult]) -> list[str]:
    curve = [
        (level.output_tokens_per_second, itl.p50 * 1e3)
        for level in levels
        if (itl := level.latencies["itl"]) is not None
    ]
    plots = [
        line_plot(
            "Latency against throughput",
            "output tokens per second",
            "inter-token latency, p50, ms",
            [Series("", curve)],
        )
    ]
    loads = [float(level.concurrency or level.rate or 0) for level in levels]
    axis = "requests at once" if levels[0].concurrency else "requests per second"
    speeds = [level.output_tokens_per_second for level in levels]
    throughput = [Series("", list(zip(loads, speeds, strict=True)))]
    plots.append(line_plot("Throughput", axis, "output tokens per second", throughput))
    for name, text in LATENCIES.items():
        series = [
            Series(
                quantile,
                [
                    (load, getattr(summary, quantile) * 1e3)
                    for load, level in zip(loads, levels, strict=True)
                    if (summary := level.latencies[name]) is not None
                ],
            )
            for quantile in QUANTILES
        ]
        plots.append(line_plot(text[0].upper() + text[1:], axis, "ms", series))
    return [plot for plot in plots if plot]


def line_plot(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Return an SVG of lines with points, both axes from 0, or "" if there are no points."""
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    ticks_x, ticks_y = (nice_ticks(max(point[axis] for point in points)) for axis in (0, 1))

    def position(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + point[0] / ticks_x[-1] * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - point[1] / ticks_y[-1] * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [f'<text x="{LEFT}" y="16" font-weight="600">{escape(title)}</text>']
    for tick in ticks_x:
        x, y = position((tick, 0))
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in ticks_y:
        x, y = position((0, tick))
        parts.append(
            f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#8886"/>'
            f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts += [
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="{LEFT}" y="{TOP - 4}" opacity=".7">{escape(y_label)}</text>',
    ]
    for number, (line, colour) in enumerate(zip(series, COLOURS, strict=False)):
        positions = [position(point) for point in sorted(line.points)]
        path = " ".join(f"{x},{y}" for x, y in positions)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in positions]
        if line.name:
            x = WIDTH - RIGHT - 40 * (len(series) - number)
            parts.append(f'<text x="{x}" y="16" fill="{colour}">{escape(line.name)}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def nice_ticks(highest: float) -> list[float]:
    """Return 0 and up to five round steps, the last not less than `highest`.

    >>> nice_ticks(730)
    [0.0, 200.0, 400.0, 600.0, 800.0]
    """
    if highest <= 0:
        return [0.0, 1.0]
    power = 1.0
    while power * 10 <= highest:
        power *= 10
    while power > highest:
        power /= 10
    step = next(s * power for s in (0.2, 0.5, 1, 2) if highest / (s * power) <= 5)
    count = 1
    while step * count < highest:
        count += 1
    return [round(step * number, 12) for number in range(count + 1)]


def _throughputs(levels: Sequence[LevelResult]) -> str:
    rows = [
        [
            level.label,
            f"{level.requests_per_second:.2f}",
            f"{level.output_tokens_per_second:,.1f}",
            f"{level.total_tokens_per_second:,.1f}",
            "–" if level.goodput is None else f"{level.goodput:.2f}",
            str(level.requests),
            "; ".join(f"{count} × {error}" for error, count in level.errors.items()) or "0",
        ]
        for level in levels
    ]
    head = ["load", "requests/s", "output tokens/s", "all tokens/s", "goodput", "requests"]
    return _table([*head, "errors"], rows)


def _latencies(levels: Sequence[LevelResult]) -> str:
    head = ["load", *(f"{name.upper()} {p}" for name in LATENCIES for p in QUANTILES)]
    rows = []
    for level in levels:
        row = [level.label]
        for name in LATENCIES:
            summary = level.latencies[name]
            row += [f"{getattr(summary, p) * 1e3:,.1f}" if summary else "–" for p in QUANTILES]
        rows.append(row)
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
