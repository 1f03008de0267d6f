"""The plots of a report, drawn by matplotlib as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

from nemotron_bench.results import LevelResult
from nemotron_bench.statistics import LATENCIES, QUANTILES

SIZE = (4.8, 3.1)
"""Width and height in inches."""
GREY = "#808890"
"""Ink that can be read on a light page and on a dark one."""
STYLE = {
    "axes.edgecolor": GREY, "axes.labelcolor": GREY, "axes.titlecolor": GREY,
    "xtick.color": GREY, "ytick.color": GREY, "legend.labelcolor": GREY,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "svg.hashsalt": "nemotron", "axes.titlesize": "medium",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A line, with the lower and upper ends of an interval at each point if it has them."""

    name: str
    points: list[tuple[float, float]]
    intervals: list[tuple[float, float] | None]


@dataclass(frozen=True)
class Plot:
    title: str
    svg: bytes

    @property
    def url(self) -> str:
        """The plot as the address of an image, so that a page has all of it in one file."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def plots(levels: Sequence[LevelResult]) -> list[Plot]:
    """Return the plots of a report, without those that have no points."""
    axis = "requests at once" if levels and levels[0].concurrency else "requests per second"
    drawn = [
        draw(
            "Latency against throughput",
            "output tokens per second",
            "ITL p50, ms",
            [_curve(levels)],
        ),
        draw("Throughput", axis, "output tokens per second", [_throughput(levels)]),
        *(
            draw(text[0].upper() + text[1:], axis, "ms", list(_latency(levels, name)))
            for name, text in LATENCIES.items()
        ),
    ]
    return [plot for plot in drawn if plot is not None]


def draw(title: str, x_label: str, y_label: str, lines: Sequence[Series]) -> Plot | None:
    """Return lines with points, both axes from 0, or `None` if there are no points."""
    if not any(line.points for line in lines):
        return None
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for line in lines:
            xs, ys = zip(*line.points, strict=True) if line.points else ((), ())
            errors = [
                (y - ends[0], ends[1] - y) if ends else (0.0, 0.0)
                for y, ends in zip(ys, line.intervals, strict=True)
            ]
            bars = [[max(0.0, side) for side in sides] for sides in zip(*errors, strict=True)]
            axes.errorbar(xs, ys, yerr=bars or None, marker="o", capsize=3, label=line.name or None)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, xlim=(0, None), ylim=(0, None))
        if len(lines) > 1:
            axes.legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Plot(title, file.getvalue())


def _load(level: LevelResult) -> float:
    return float(level.concurrency or level.rate or 0)


def _curve(levels: Sequence[LevelResult]) -> Series:
    points = [
        (level.output_tokens_per_second, itl.p50 * 1e3)
        for level in levels
        if (itl := level.latencies["itl"]) is not None
    ]
    return Series("", points, [None] * len(points))


def _throughput(levels: Sequence[LevelResult]) -> Series:
    points = [(_load(level), level.output_tokens_per_second) for level in levels]
    return Series("", points, [level.throughput_interval for level in levels])


def _latency(levels: Sequence[LevelResult], name: str) -> Iterator[Series]:
    summaries = [
        (_load(level), summary)
        for level in levels
        if (summary := level.latencies[name]) is not None
    ]
    for quantile in QUANTILES:
        points = [(load, getattr(summary, quantile) * 1e3) for load, summary in summaries]
        intervals = [
            (ends[0] * 1e3, ends[1] * 1e3)
            if quantile == "p50" and (ends := summary.p50_interval)
            else None
            for _, summary in summaries
        ]
        yield Series(quantile, points, intervals)
