"""What a processor can do at best: memory, bandwidth and arithmetic, by its maker's data sheet.

GPU figures are those of NVIDIA's data sheets for the SXM modules ("NVIDIA A100 Tensor Core GPU",
"NVIDIA H100 Tensor Core GPU", "NVIDIA H200 Tensor Core GPU"); arithmetic without sparsity, which
the H100 and H200 sheets print doubled. Memory is as nvidia-smi shows it.
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
"""Read by each thread at a time: far more than any cache holds."""
SAMPLE_SECONDS = 0.5
"""For each measurement."""


@dataclass(frozen=True)
class Hardware:
    """One processor; bytes, bytes per second, operations per second."""

    name: str
    memory: int
    bandwidth: float
    flops: dict[str, float]
    """Multiplications and additions per second, by type; empty where nobody states them."""


def _card(name: str, bandwidth: float, **tera_flops: float) -> Hardware:
    flops = {dtype: count * TERA for dtype, count in tera_flops.items()}
    return Hardware(name, CARDS[name], bandwidth * TERA, flops)


GPUS = {
    "A100": _card("A100 80 GB", 2.039, bf16=312),
    "H100": _card("H100 80 GB", 3.35, bf16=989.4, fp8=1978.9),
    "H200": _card("H200 141 GB", 4.8, bf16=989.4, fp8=1978.9),
}
"""By the name that a profile gives its GPU."""


def find_hardware(name: str) -> Hardware:
    """A GPU of the table; NemotronError if there is none of that name."""
    if name not in GPUS:
        raise NemotronError(
            f"nothing is known of the GPU {name!r}",
            where="--gpu",
            remedy=f"use one of {', '.join(GPUS)}",
        )
    return GPUS[name]


def measure_this_machine() -> Hardware:
    """The CPU here: its memory, and how fast all cores together read it, measured now."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware("this CPU", memory, read_bandwidth(), {})


def read_bandwidth() -> float:
    """Bytes per second that all cores of this process read from memory, the best of several runs.

    Each core takes the dot product of an array with itself: of all that NumPy offers, this keeps
    the memory busiest.
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
