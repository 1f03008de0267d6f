"""Peak RSS and time of calibration over the number of layers.

A random model of hidden size 2048 and 32 sequences of 256 tokens. The weights of a layer have 0.1
GB. Each size is calibrated with the hidden states in memory and, by `--calibrate-memory 0`, on
disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
from typing import Any

import numpy as np

from bench.measurements.machine import NEMOTRON, drop_page_cache
from bench.measurements.random_nemo import Shape, write_nemo
from bench.measurements.timing import run_command, summary

LAYERS = (4, 8, 16, 32)
MEMORY_GIGABYTES = {True: "8", False: "0"}
"""Value of `--calibrate-memory` by whether the hidden states stay in memory."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the common options are all."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    source, out, ids_file = (options.work / name for name in ("source", "out", "ids.json"))
    rows = []
    for layers in LAYERS:
        shape = Shape(layers=layers, hidden=2048, heads=16, kv_heads=8, vocab=32000)
        shutil.rmtree(source, ignore_errors=True)
        write_nemo(source, shape)
        ids = np.random.default_rng(2).integers(0, shape.vocab, (32, 256)).tolist()
        ids_file.write_text(json.dumps(ids))
        for in_memory, gigabytes in MEMORY_GIGABYTES.items():
            command = [
                *(NEMOTRON, "convert", str(source), "-o", str(out), "--tp", "8", "--dtype", "fp8"),
                *("--calibrate-memory", gigabytes, "--calibrate-ids", str(ids_file)),
            ]
            costs = []
            for _ in range(options.runs):
                shutil.rmtree(out, ignore_errors=True)
                drop_page_cache()
                costs.append(run_command(command))
            seconds = summary([cost.seconds for cost in costs])
            rows.append(
                {
                    "layers": layers,
                    "bytes": shape.nbytes,
                    "states_in_memory": in_memory,
                    **{f"{key}_seconds": value for key, value in seconds.items()},
                    "peak_rss": max(cost.peak_rss for cost in costs),
                    "least_peak_rss": min(cost.peak_rss for cost in costs),
                }
            )
            print(rows[-1], flush=True)
    for path in (source, out):
        shutil.rmtree(path)
    return {"rows": rows}
