"""The memory, bandwidth and arithmetic of processors, from their makers' data sheets.

The figures of GPUs are those of NVIDIA's data sheets for the SXM modules ("NVIDIA A100 Tensor Core
GPU", "NVIDIA H100 Tensor Core GPU", "NVIDIA H200 Tensor Core GPU"). Arithmetic is without sparsity;
the sheets of H100 and H200 print it with sparsity, which doubles it. Memory is as nvidia-smi shows
it.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.plan import CARDS
from nemotron_core.errors import NemotronError

TERA = 1e12
SAMPLE_BYTES = 256 << 20
"""Bytes that each thread reads at a time: far more than any cache holds."""
SAMPLE_SECONDS = 0.5
"""Duration of one measurement."""


@dataclass(frozen=True)
class Hardware:
    """Memory, bandwidth and peak arithmetic of one processor."""

    name: str
    memory: int
    """Bytes."""
    bandwidth: float
    """Bytes per second."""
    flops: dict[str, float]
    """Multiplications and additions per second, by type; empty if no data sheet states them."""


def _gpu(name: str, bandwidth: float, **tera_flops: float) -> Hardware:
    flops = {dtype: count * TERA for dtype, count in tera_flops.items()}
    return Hardware(name, CARDS[name], bandwidth * TERA, flops)


GPUS = {
    "A100": _gpu("A100 80 GB", 2.039, bf16=312),
    "H100": _gpu("H100 80 GB", 3.35, bf16=989.4, fp8=1978.9),
    "H200": _gpu("H200 141 GB", 4.8, bf16=989.4, fp8=1978.9),
}
"""The GPUs by the name that profiles give them."""


def find_hardware(name: str) -> Hardware:
    """Return a GPU of the table. Raises `NemotronError` if the table has no such GPU."""
    if name not in GPUS:
        raise NemotronError(
            f"no data sheet figures for the GPU {name!r}",
            where="--gpu",
            remedy=f"use one of {', '.join(GPUS)}",
        )
    return GPUS[name]


def measure_this_machine() -> Hardware:
    """Return this machine's CPU with its memory and with its bandwidth, measured now."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware("this CPU", memory, read_bandwidth(), {})


def read_bandwidth() -> float:
    """Return the bytes per second that all cores of this process together read from memory.

    This is the best of several runs. Each core computes the dot product of an array with itself:
    of all functions of NumPy, this one keeps the memory busiest.
    """
    cores = len(os.sched_getaffinity(0))
    arrays = [np.ones(SAMPLE_BYTES // 4, np.float32) for _ in range(cores)]
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        end = time.perf_counter() + SAMPLE_SECONDS
        while time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(_read, arrays))
            best = max(best, cores * SAMPLE_BYTES / (time.perf_counter() - start))
    return best


def _read(array: NDArray[np.float32]) -> float:
    return float(np.dot(array, array))
