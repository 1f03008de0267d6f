"""A report as one self-contained HTML file with tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nemotron_bench.plots import plots
from nemotron_bench.report_text import interval
from nemotron_bench.results import LevelResult, Report
from nemotron_bench.statistics import LATENCIES, QUANTILES
from nemotron_bench.sweep import knee_text

STYLE = """
:root { color-scheme: light dark; --line: #8888 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
th { font-weight: 600 }
figure { display: inline-block; margin: 0 .8rem 1rem 0 }
img { max-width: 100% }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem }
dd { margin: 0; overflow-wrap: anywhere }
dt { opacity: .7 }
"""


def html(report: Report) -> str:
    """Return the page."""
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in report.facts().items()
    )
    figures = "".join(
        f'<figure><img src="{plot.url}" alt="{escape(plot.title)}"></figure>'
        for plot in plots(report.levels)
    )
    knee = "" if report.knee is None else f"<p>{escape(knee_text(report.knee, report.levels))}</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Bench of {escape(report.target)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(report.target)}</h1>{knee}{figures}"
        f"<h2>Throughput</h2>{_throughputs(report.levels)}"
        f"<h2>Latency, milliseconds</h2>{_latencies(report.levels)}"
        f"<h2>What was measured, and on what</h2><dl>{facts}</dl></body></html>\n"
    )


def _throughputs(levels: Sequence[LevelResult]) -> str:
    rows = [
        [
            level.label,
            f"{level.requests_per_second:.2f}",
            f"{level.output_tokens_per_second:,.1f}{interval(level.throughput_interval, 1)}",
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
