"""A layer of calibration against reading it from the disk and against its matrix products alone.

A random model of several layers is calibrated with the page cache dropped, on the devices that
`--devices` names. The time of a layer is that of all layers but the first, which nothing hides,
divided by their number. It is compared with the greater of two times that no program can beat by
much: reading a layer's files in the same run, with as many threads, and two operations for each
weight and token at half of the device's BF16 peak. The peak of a GPU is its data sheet's; of a CPU
it is twice the speed of large products measured in the same run.

`--true-size` takes a layer of Nemotron-4-340B (6.9 GB) and 512 sequences of 512 tokens.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.measurements.machine import drop_page_cache
from bench.measurements.random_nemo import Shape, write_nemo
from bench.measurements.timing import summary
from nemotron_build.hardware import GPUS
from nemotron_convert.calibration.assignment import Assignment, assign
from nemotron_convert.calibration.calibration_pass import CalibrationPass
from nemotron_convert.calibration.devices import measure_products
from nemotron_convert.calibration.hidden_states import HiddenStates
from nemotron_convert.calibration.layer_feed import READERS, LayerFeed
from nemotron_convert.calibration.layer_weights import LINEAR_SOURCES, layer_nbytes
from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.calibration.worker import Worker
from nemotron_convert.source.nemo import Source
from nemotron_convert.team import ALONE

SMALL = Shape(layers=4, hidden=2048, heads=16, kv_heads=8, vocab=32000)
TRUE_SIZE = Shape(layers=3, hidden=18432, heads=96, kv_heads=8, vocab=4096)
READ_BYTES = 8 << 20
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "linear"),
    "attention": ("scaled_dot_product", "flash", "softmax", "efficient_attention"),
    "norms": ("layer_norm",),
    "largest magnitudes": ("aminmax",),
    "copies and casts": ("copy_", "_to_copy", "cat", "clone"),
}
"""Kinds of operations, by parts of the names that torch.profiler gives them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--true-size", action="store_true", help="needs 30 GB of disk")
    parser.add_argument("--sequences", type=int, help="default 512 at true size, else 8")
    parser.add_argument("--length", type=int, default=512, help="tokens of each, default 512")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    shape = TRUE_SIZE if options.true_size else SMALL
    count = options.sequences or (512 if options.true_size else 8)
    folder = options.work / "source"
    shutil.rmtree(folder, ignore_errors=True)
    write_nemo(folder, shape, small=True)
    random = np.random.default_rng(3)
    sequences = random.integers(0, shape.vocab, (count, options.length)).tolist()
    rows: list[dict[str, float]] = []
    with Source.open(folder) as source:
        given = CalibrationOptions(devices=options.devices)
        assignment = assign(source, sequences, given, ALONE)
        layer_bytes = layer_nbytes(source)
        flops = 2 * (layer_bytes // 2) * count * options.length
        peaks = [half_of_peak(device) for device in assignment.devices]
        for run in range(options.runs):
            drop_page_cache()
            reading = read_layer(folder, layer=shape.layers - 1)
            drop_page_cache()
            seconds = layer_seconds(source, sequences, options.work / f"state{run}", given)
            computing = flops / sum(peaks)
            rows.append(
                {
                    "first_layer": seconds[0],
                    "layer": sum(seconds[1:]) / len(seconds[1:]),
                    "read": reading,
                    "compute_at_half_of_peak": computing,
                }
            )
            rows[-1]["over_limit"] = rows[-1]["layer"] / max(reading, computing)
            print(rows[-1], flush=True)
        operations = profile_layer(source, assignment, options.work / "profile")
    shutil.rmtree(folder)
    return {
        "layer_bytes": layer_bytes,
        "tokens": count * options.length,
        "devices": [describe(device) for device in assignment.devices],
        "slots": assignment.plan.slots,
        "batch_tokens": assignment.plan.batch_tokens,
        "hidden_states": assignment.plan.place.value,
        "seconds": {name: summary([row[name] for row in rows]) for name in rows[0]},
        "fraction_of_device_time": operations,
    }


def describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def half_of_peak(device: torch.device) -> float:
    """Return half of the device's BF16 operations per second, or what a CPU's products reach."""
    if device.type != "cuda":
        return measure_products(device)
    name = torch.cuda.get_device_name(device)
    for short_name, gpu in GPUS.items():
        if short_name in name:
            return gpu.flops["bf16"] / 2
    raise SystemExit(f"no data sheet figures for {name}: add them to nemotron_build.hardware")


def read_layer(folder: Path, layer: int) -> float:
    """Return the seconds in which as many threads as the calibration's read a layer's files."""
    paths = [
        path
        for tensor in LINEAR_SOURCES.values()
        for path in (folder / "model_weights" / tensor).glob(f"{layer}.*")
    ]

    def read(path: Path) -> None:
        buffer = bytearray(READ_BYTES)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    start = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, paths))
    return time.perf_counter() - start


def layer_seconds(
    source: Source, sequences: list[list[int]], folder: Path, options: CalibrationOptions
) -> list[float]:
    """Calibrate and return the seconds until each layer was done, from the one before on."""
    times: list[float] = []

    class Timed(CalibrationPass):
        def _run_layer(self, *arguments: Any) -> Any:
            result = super()._run_layer(*arguments)
            times.append(time.perf_counter())
            return result

    calibration = Timed(source, sequences, folder, options, ALONE)
    start = time.perf_counter()
    calibration.run()
    shutil.rmtree(folder)
    return list(np.diff([start, *times]).tolist())


def profile_layer(source: Source, assignment: Assignment, folder: Path) -> dict[str, float]:
    """Compute a layer on the first device and return the fraction of each kind of operation."""
    device = assignment.devices[0]
    is_gpu = device.type == "cuda"
    lengths = assignment.parts[0]
    width = source.config.hidden_size
    states = torch.full((sum(lengths), width), 0.01, dtype=torch.bfloat16, device=device)
    hidden = HiddenStates(folder, len(states), width, [states])
    worker = Worker(source.config, device, hidden, 0, lengths, assignment.plan.batch_tokens)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with closing(LayerFeed(source, [device], slots=1).layers(0)) as layers:
        _, (weights,) = next(layers)
        worker.run(weights, lambda tokens: None)  # the first time is slower
        with profile(activities=activities) as profiler:
            worker.run(weights, lambda tokens: None)
    shutil.rmtree(folder)
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:  # a GPU's kernels are counted by their operations
            continue
        kind = next(
            (kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)),
            "other",
        )
        times[kind] += event.self_device_time_total if is_gpu else event.self_cpu_time_total
    return {kind: value / times.total() for kind, value in times.most_common()}
