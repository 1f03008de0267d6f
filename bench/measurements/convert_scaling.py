"""Time and peak RSS of `nemotron convert` over the model's size, up to the 340B's own tensors.

The largest point is one layer and both vocabulary matrices of Nemotron-4-340B in their true shape,
saved at TP 8 (26 GB); the smaller ones have about one half and one quarter of its bytes.
"""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from bench.measurements.machine import NEMOTRON, drop_page_cache
from bench.measurements.random_nemo import Shape, write_nemo
from bench.measurements.timing import run_command, summary

SHAPES = (
    Shape(layers=1, hidden=9216, heads=48, kv_heads=8, vocab=128000),
    Shape(layers=2, hidden=9216, heads=48, kv_heads=8, vocab=256000),
    Shape(layers=1, hidden=18432, heads=96, kv_heads=8, vocab=256000),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the common options are all."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    source, out = options.work / "source", options.work / "out"
    command = [NEMOTRON, "convert", str(source), "-o", str(out), "--tp", "8"]
    rows = []
    for shape in SHAPES:
        shutil.rmtree(source, ignore_errors=True)
        write_nemo(source, shape)
        costs = []
        for _ in range(options.runs):
            shutil.rmtree(out, ignore_errors=True)
            drop_page_cache()
            costs.append(run_command(command))
        seconds = summary([cost.seconds for cost in costs])
        rows.append(
            {
                "bytes": shape.nbytes,
                **{f"{key}_seconds": value for key, value in seconds.items()},
                "peak_rss": max(cost.peak_rss for cost in costs),
            }
        )
        print(rows[-1], flush=True)
    shutil.rmtree(source)
    shutil.rmtree(out)
    return {"rows": rows}
