"""Peak RSS and time of calibration against the number of layers.

    python -m bench.measurements.calibrate_memory WORK_FOLDER [--runs 3] [--json OUT]

A random model of hidden size 2048; 32 sequences of 256 tokens. The weights of a layer have 0.1 GB.
Once with the hidden states in memory and once, `--calibrate-memory 0`, with them on disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

import numpy as np

from bench.measurements.convert_speed import NEMOTRON, drop_caches, machine, measure
from bench.measurements.random_nemo import Shape, write_nemo

LAYERS = (4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for layers in LAYERS:
        shape = Shape(layers=layers, hidden=2048, heads=16, kv_heads=8, vocab=32000)
        source, out = options.folder / "source", options.folder / "out"
        shutil.rmtree(options.folder, ignore_errors=True)
        write_nemo(source, shape)
        ids = np.random.default_rng(2).integers(0, shape.vocab, (32, 256)).tolist()
        (options.folder / "ids.json").write_text(json.dumps(ids))
        for memory in ("8", "0"):
            seconds, peaks = [], []
            for _ in range(options.runs):
                shutil.rmtree(out, ignore_errors=True)
                drop_caches()
                command = [NEMOTRON, "convert", str(source), "-o", str(out), "--tp", "8"]
                command += ["--dtype", "fp8", "--calibrate-memory", memory]
                command += ["--calibrate-ids", str(options.folder / "ids.json")]
                took, peak = measure(command)
                seconds.append(took)
                peaks.append(peak)
            rows.append(
                {
                    "layers": layers,
                    "bytes": shape.nbytes,
                    "states_in_memory": memory == "8",
                    "median_seconds": statistics.median(seconds),
                    "min_seconds": min(seconds),
                    "max_seconds": max(seconds),
                    "peak_rss": max(peaks),
                    "least_peak_rss": min(peaks),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    shutil.rmtree(options.folder)
    result = {"machine": machine(), "runs": options.runs, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
