"""Panels of a page's plots, drawn by matplotlib as SVG.

The same values give the same bytes with one version of matplotlib, and hardly differ with others:
texts stay texts, and nothing is placed by the width of one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from nemotron_bench.plots import GREY, STYLE

Value = float | tuple[float, float, float]
"""A value, or the lowest, the middle and the highest one of several runs."""

WIDTH = 8.0
"""Width of a plot in inches, as all lengths below."""
LINE = 0.17
"""Height of a line of text."""
LETTER = 0.07
"""Width that the space for labels has for each character."""
TOP, BOTTOM = 0.38, 0.52
COLOURS = ("#4d9900", "#3b7fd4", "#cf642a", "#a15fc4", "#0f8f8f", "#b8860b", "#c2497a", GREY)
"""Inks that can be read on a light page and on a dark one."""


class Panel(Protocol):
    """One pair of axes."""

    title: str

    @property
    def height(self) -> float:
        """Height in inches, with title and axes."""

    @property
    def margins(self) -> tuple[float, float]:
        """Space for labels at the left and at the right, in inches."""

    def draw(self, axes: Axes) -> None:
        """Draw everything but the title."""


@dataclass(frozen=True)
class Lines:
    """Lines with both axes from 0, each with its name at its end."""

    title: str
    x_label: str
    lines: Mapping[str, Sequence[tuple[float, Value]]]
    """Points by the name of the line."""
    log: bool = False
    """Whether the x axis is logarithmic, with a tick at each point."""
    top: float | None = None
    """Highest value on the y axis; without it a little more than the highest point."""
    dots: bool = True

    @property
    def height(self) -> float:
        return 3.0

    @property
    def margins(self) -> tuple[float, float]:
        return 0.65, 0.25 + LETTER * max(map(len, self.lines))

    def draw(self, axes: Axes) -> None:
        ends: dict[str, float] = {}
        for (name, points), colour in zip(self.lines.items(), COLOURS, strict=False):
            xs, values = zip(*points, strict=True)
            lows, middles, highs = zip(*map(_range, values), strict=True)
            axes.plot(xs, middles, color=colour, linewidth=1.6, marker="o" if self.dots else "")
            if lows != highs:
                axes.vlines(xs, lows, highs, color=colour, linewidth=4, alpha=0.35)
            ends[name] = middles[-1]
        _set_x(axes, sorted({x for points in self.lines.values() for x, _ in points}), self.log)
        values = [_range(value)[2] for points in self.lines.values() for _, value in points]
        axes.set_ylim(0, self.top or 1.06 * max(values))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(self.x_label)
        self._name(axes, ends)

    def _name(self, axes: Axes, ends: Mapping[str, float]) -> None:
        """Write each line's name at its end, moved up where two would touch."""
        least = LINE / (self.height - TOP - BOTTOM)
        above = 0.0
        for name in sorted(ends, key=lambda name: ends[name]):
            above = max(ends[name] / axes.get_ylim()[1], above + least if above else 0.0)
            colour = COLOURS[list(self.lines).index(name)]
            axes.text(1.02, above, name, color=colour, va="center", transform=axes.transAxes)


@dataclass(frozen=True)
class Ranges:
    """A row for each label, with one value or range of each series."""

    title: str
    x_label: str
    rows: Sequence[str]
    series: Mapping[str, Sequence[Value | None]]
    """Values in the order of the rows by the name of the series, which is empty if there is one."""
    marks: Sequence[float] = ()
    """A limit in each row, or none."""
    line: float | None = None
    """A value that is marked over all rows."""

    @property
    def height(self) -> float:
        return TOP + BOTTOM + len(self.rows) * self._row

    @property
    def margins(self) -> tuple[float, float]:
        return 0.2 + LETTER * max(map(len, self.rows)), 0.25 + LETTER * max(map(len, self.series))

    @property
    def _row(self) -> float:
        return 0.12 + 0.13 * len(self.series)

    def draw(self, axes: Axes) -> None:
        step = 0.13 / self._row
        first = step * (len(self.series) - 1) / 2
        highest = max(self.marks, default=0.0)
        for number, ((name, values), colour) in enumerate(
            zip(self.series.items(), COLOURS, strict=False)
        ):
            for row, value in enumerate(values):
                if value is None:
                    continue
                y = row - first + number * step
                low, middle, high = _range(value)
                highest = max(highest, high)
                axes.hlines(y, low, high, color=colour, linewidth=4, alpha=0.35)
                axes.plot([middle], [y], color=colour, marker="o", markersize=5)
            height = 1 - (0.5 + number) * LINE / (self.height - TOP - BOTTOM)
            axes.text(1.02, height, name, color=colour, va="center", transform=axes.transAxes)
        for row, mark in enumerate(self.marks):
            axes.vlines(mark, row - 0.4, row + 0.4, color=GREY, linewidth=1.6)
        if self.line is not None:
            axes.axvline(self.line, color=GREY, linewidth=1.6)
        axes.set_xlim(0, 1.04 * highest)
        axes.set_ylim(len(self.rows) - 0.5, -0.5)
        axes.set_yticks(range(len(self.rows)), self.rows)
        axes.tick_params(axis="y", length=0)
        axes.yaxis.grid(False)
        axes.set_xlabel(self.x_label)


def svg(*panels: Panel) -> str:
    """Return panels side by side as an SVG image without a background."""
    style = STYLE | {"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10}
    height = max(panel.height for panel in panels)
    with mpl.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH, height))
        for number, panel in enumerate(panels):
            left, right = panel.margins
            width = WIDTH / len(panels) - left - right
            start = number * WIDTH / len(panels) + left
            axes = figure.add_axes(
                (start / WIDTH, BOTTOM / height, width / WIDTH, 1 - (TOP + BOTTOM) / height)
            )
            axes.set_axisbelow(True)
            axes.set_title(panel.title, loc="left")
            panel.draw(axes)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return file.getvalue()


def _range(value: Value) -> tuple[float, float, float]:
    return value if isinstance(value, tuple) else (value, value, value)


def _set_x(axes: Axes, xs: Sequence[float], log: bool) -> None:
    if log:
        axes.set_xscale("log")
        axes.set_xlim(xs[0] / 1.2, xs[-1] * 1.2)
        axes.xaxis.set_major_locator(FixedLocator(list(xs)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{x:,.0f}" for x in xs])
    else:
        axes.set_xlim(0, 1.02 * xs[-1])
