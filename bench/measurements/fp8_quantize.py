"""Quantizing BF16 to E4M3 on one core: the table, PyTorch's own conversion, and reading the disk.

All take turns in one run. Rates are GB/s of BF16 input. `disk` reads a file with a cold page cache.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.measurements.machine import drop_page_cache
from bench.measurements.timing import in_turn, summary
from nemotron_convert.target.fp8 import amax_bits, bf16_from_bits, e4m3_table, look_up, scale_of

WORDS = 1 << 27
BAND = 1 << 19
"""Words at a time, as the converter takes them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the common options are all."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.standard_normal(WORDS, np.float32)).mul_(0.02).bfloat16()
    words = weights.view(torch.uint16).numpy()
    scale = scale_of(bf16_from_bits(amax_bits(words)))
    table = e4m3_table(scale)
    path = options.work / "words"
    words.tofile(path)
    os.sync()
    parts = [slice(start, start + BAND) for start in range(0, WORDS, BAND)]
    divisor = torch.tensor(scale)

    def quantize_by_table() -> None:
        for part in parts:
            look_up(table, words[part])

    def quantize_by_torch() -> None:
        for part in parts:
            (weights[part].float() / divisor).to(torch.float8_e4m3fn)

    def amax() -> None:
        for part in parts:
            amax_bits(words[part])

    def amax_by_torch() -> None:
        for part in parts:
            weights[part].abs().amax()

    def read_disk() -> None:
        buffer = bytearray(BAND * 2)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    methods: dict[str, Callable[[], None]] = {
        "table": quantize_by_table,
        "torch": quantize_by_torch,
        "amax": amax,
        "amax by torch": amax_by_torch,
        "disk": read_disk,
    }
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for _, name in in_turn(options.runs, list(methods)):
        if name == "disk":
            drop_page_cache()
        start = time.perf_counter()
        methods[name]()
        rates[name].append(words.nbytes / (time.perf_counter() - start) / 1e9)
    path.unlink()
    return {
        "bytes": words.nbytes,
        "gb_per_s": {name: summary(values) for name, values in rates.items()},
    }
