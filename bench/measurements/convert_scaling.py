"""Time and peak RSS of `nemotron convert` against the model's size, up to 340B's own tensors.

    python -m bench.measurements.convert_scaling WORK_FOLDER [--runs 3] [--json OUT]
        [--plot OUT.svg]

The largest point is one layer and both vocabulary matrices of Nemotron-4-340B in their true shape,
saved at TP 8 (26 GB); the smaller ones have about a half and a quarter of its bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

from bench.measurements.convert_speed import NEMOTRON, drop_caches, machine, measure
from bench.measurements.random_nemo import Shape, write_nemo

SHAPES = (
    Shape(layers=1, hidden=9216, heads=48, kv_heads=8, vocab=128000),
    Shape(layers=2, hidden=9216, heads=48, kv_heads=8, vocab=256000),
    Shape(layers=1, hidden=18432, heads=96, kv_heads=8, vocab=256000),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    rows = []
    for shape in SHAPES:
        source, out = options.folder / "source", options.folder / "out"
        shutil.rmtree(options.folder, ignore_errors=True)
        write_nemo(source, shape)
        seconds, peaks = [], []
        for _ in range(options.runs):
            shutil.rmtree(out, ignore_errors=True)
            drop_caches()
            took, peak = measure([NEMOTRON, "convert", str(source), "-o", str(out), "--tp", "8"])
            seconds.append(took)
            peaks.append(peak)
        rows.append(
            {
                "bytes": shape.nbytes,
                "median_seconds": statistics.median(seconds),
                "min_seconds": min(seconds),
                "max_seconds": max(seconds),
                "peak_rss": max(peaks),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    shutil.rmtree(options.folder)
    result = {"machine": machine(), "runs": options.runs, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        options.plot.write_text(plot(rows))


def plot(rows: list[dict[str, float]]) -> str:
    """Two curves over the bytes, as an SVG."""
    width, height, left = 560, 300, 60
    most = {key: max(row[key] for row in rows) for key in ("bytes", "median_seconds")}

    def x(row: dict[str, float]) -> float:
        return left + row["bytes"] / most["bytes"] * (width - 2 * left)

    def line(values: list[float], top: float, colour: str) -> str:
        points = [
            (x(row), height - 40 - value / top * (height - 80))
            for row, value in zip(rows, values, strict=True)
        ]
        path = " ".join(f"{a:.0f},{b:.0f}" for a, b in points)
        dots = "".join(
            f'<circle cx="{a:.0f}" cy="{b:.0f}" r="3" fill="{colour}"/>' for a, b in points
        )
        return f'<polyline points="{path}" fill="none" stroke="{colour}"/>{dots}'

    seconds = [row["median_seconds"] for row in rows]
    memory = [row["peak_rss"] for row in rows]
    ticks = "".join(
        f'<text x="{x(row):.0f}" y="{height - 20}" text-anchor="middle">'
        f"{row['bytes'] / 1e9:.1f} GB</text>"
        for row in rows
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        + line(seconds, max(seconds), "#1f6feb")
        + line(memory, 4 * 2**30, "#c2410c")
        + ticks
        + f'<text x="{left}" y="20" fill="#1f6feb">seconds (top: {max(seconds):.0f} s)</text>'
        f'<text x="{left + 180}" y="20" fill="#c2410c">peak RSS (top: 4 GiB; highest '
        f"{max(memory) / 2**20:.0f} MiB)</text></svg>\n"
    )


if __name__ == "__main__":
    main()
