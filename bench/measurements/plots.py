"""The plots of the pages as SVG files, drawn from records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.measurements.records import Record

COLOURS = ("#2a6", "#36c", "#c63", "#939", "#888", "#a80", "#088", "#b35")
WIDTH, HEIGHT, MARGIN = 760, 320, 50
LABEL_WIDTH = 170
PLOT_WIDTH = WIDTH - MARGIN - LABEL_WIDTH
PLOT_HEIGHT = HEIGHT - 2 * MARGIN
RSS_LIMIT = 4 * 2**30
"""Top of the RSS axis of the conversion's plot in bytes: the limit that conversions keep to."""

Points = Sequence[tuple[float, float]]
"""Positions as fractions of the plot's width and height."""


def stress() -> str:
    """Return the RSS of the server during the stress test: of all processes, and of each."""
    results = Record.read("stress").results
    samples = results["samples"]
    totals = [sum(sample["rss"].values()) for sample in samples]
    end, top = samples[-1]["seconds"], 1.15 * max(totals)
    last = samples[-1]["rss"]
    series = {"all": list(zip((s["seconds"] for s in samples), totals, strict=True))}
    for name in sorted(last, key=lambda name: -last[name]):
        series[name] = [(s["seconds"], s["rss"][name]) for s in samples if name in s["rss"]]
    lines = {
        f"{name}, {values[-1][1] / 1e6:,.0f} MB": [(x / end, y / top) for x, y in values]
        for name, values in series.items()
    }
    growth = results["growth_in_the_second_half_megabytes_per_minute"]["all"]
    title = (
        f"RSS of the server, 0 to {top / 1e6:,.0f} MB; in the second half {growth:+.2f} MB a minute"
    )
    return svg(title, lines, {1.0: f"{end:,.0f} s"})


def convert_scaling() -> str:
    """Return the seconds and the peak RSS of conversions over their bytes."""
    rows = Record.read("convert_scaling").results["rows"]
    most_bytes, most_seconds, most_rss = (
        max(row[key] for row in rows) for key in ("bytes", "median_seconds", "peak_rss")
    )

    def line(key: str, top: float) -> Points:
        return [(row["bytes"] / most_bytes, row[key] / top) for row in rows]

    lines = {
        f"seconds, to {most_seconds:.0f}": line("median_seconds", most_seconds),
        f"peak RSS, to {most_rss / 1e6:,.0f} MB": line("peak_rss", RSS_LIMIT),
    }
    ticks = {row["bytes"] / most_bytes: f"{row['bytes'] / 1e9:.1f} GB" for row in rows}
    title = f"Conversion: seconds, and peak RSS from 0 to {RSS_LIMIT / 2**30:.0f} GiB"
    return svg(title, lines, ticks)


def svg(title: str, lines: Mapping[str, Points], ticks: Mapping[float, str]) -> str:
    """Return lines by their label, with the labels at the right and ticks below."""
    parts = []
    for row, ((label, points), colour) in enumerate(zip(lines.items(), COLOURS, strict=False)):
        path = " ".join(
            f"{MARGIN + x * PLOT_WIDTH:.1f},{HEIGHT - MARGIN - y * PLOT_HEIGHT:.1f}"
            for x, y in points
        )
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{MARGIN + PLOT_WIDTH + 12:.0f}" y="{MARGIN + 18 * row}" fill="{colour}">'
            f"{label}</text>",
        ]
    parts += [
        f'<text x="{MARGIN + at * PLOT_WIDTH:.0f}" y="{HEIGHT - MARGIN + 20}" '
        f'text-anchor="end">{text}</text>'
        for at, text in ticks.items()
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{"".join(parts)}'
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}h{PLOT_WIDTH:.0f}" fill="none" '
        'stroke="#000"/>'
        f'<text x="{MARGIN}" y="{MARGIN - 16}">{title}</text></svg>\n'
    )


PLOTS: Mapping[str, Callable[[], str]] = {
    "stress.svg": stress,
    "convert_scaling.svg": convert_scaling,
}
"""Plots by the name of their file in `docs/`."""
