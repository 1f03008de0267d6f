"""Quantizing BF16 to E4M3 on one core: the table, torch's own conversion, and reading the disk.

    python -m bench.measurements.fp8_quantize WORK_FOLDER [--runs 9] [--json OUT]

All in one run, taking turns; GB/s of BF16 taken in. `disk` reads a file with a cold page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.measurements.convert_speed import drop_caches, machine
from nemotron_convert.target.fp8 import amax_bits, bf16_from_bits, e4m3_table, look_up, scale_of

WORDS = 1 << 27
BAND = 1 << 19
"""Words at a time, as the converter takes them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.standard_normal(WORDS, np.float32)).mul_(0.02).bfloat16()
    words = weights.view(torch.uint16).numpy()
    scale = scale_of(bf16_from_bits(amax_bits(words)))
    table = e4m3_table(scale)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "words"
    words.tofile(path)
    os.sync()
    parts = [slice(start, start + BAND) for start in range(0, WORDS, BAND)]
    divisor = torch.tensor(scale)

    def by_table() -> None:
        for part in parts:
            look_up(table, words[part])

    def by_torch() -> None:
        for part in parts:
            (weights[part].float() / divisor).to(torch.float8_e4m3fn)

    def amax() -> None:
        for part in parts:
            amax_bits(words[part])

    def amax_by_torch() -> None:
        for part in parts:
            weights[part].abs().amax()

    def disk() -> None:
        buffer = bytearray(BAND * 2)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    ways: dict[str, Callable[[], None]] = {
        "table": by_table,
        "torch": by_torch,
        "amax": amax,
        "amax by torch": amax_by_torch,
        "disk": disk,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.runs):
        for name, way in ways.items():
            if name == "disk":
                drop_caches()
            start = time.perf_counter()
            way()
            rates[name].append(words.nbytes / (time.perf_counter() - start) / 1e9)
    path.unlink()
    result = {
        "machine": machine(),
        "bytes": words.nbytes,
        "runs": options.runs,
        "gb_per_s": {
            name: {"median": statistics.median(found), "min": min(found), "max": max(found)}
            for name, found in rates.items()
        },
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
