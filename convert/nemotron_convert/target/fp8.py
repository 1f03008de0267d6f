"""Per-tensor FP8 quantization as in ModelOpt: E4M3 values and one F32 scale for each matrix.

    scale = amax / 448            in F32; 448 is E4M3's largest number
    value = E4M3(weight / scale)  divided in F32, rounded to nearest, ties to even

BF16 has 65,536 values, so at a known scale a weight is quantized by looking it up in a table. The
bits of positive BF16 numbers, taken as integers, are in the order of the numbers, so amax is a
maximum of integers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

E4M3_MAX = 448.0
"""The largest E4M3 number."""
MAGNITUDE = 0x7FFF
"""Mask of a BF16 word without its sign."""
BLOCK = 1 << 16
"""Number of words looked up at a time, so that their indexes stay in the CPU's cache."""
TABLES = 8
"""Number of tables that are kept. Threads work on neighbouring tensors, so few are in use."""


def amax_bits(words: NDArray[np.uint16]) -> int:
    """Return the BF16 bits of the largest magnitude in `words`; those of zero if it is empty."""
    return int((words & MAGNITUDE).max(initial=0))


def bf16_from_bits(bits: int) -> float:
    """Return the number with these BF16 bits."""
    return float(np.array(bits, np.uint16).view(ml_dtypes.bfloat16))


def scale_of(amax: float) -> np.float32:
    """Return amax / 448 in F32, or 1 for a tensor of zeros, which every scale fits."""
    return np.float32(amax) / np.float32(E4M3_MAX) if amax else np.float32(1)


def e4m3_table(scale: np.float32) -> NDArray[np.uint8]:
    """Return the E4M3 bits of BF16 number / scale for all 65,536 BF16 numbers, by their bits.

    Quotients beyond ±448 become ±448, and NaN stays NaN.
    """
    numbers = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.clip(numbers / scale, -E4M3_MAX, E4M3_MAX)
        bits: NDArray[np.uint8] = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return bits


def look_up(table: NDArray[np.uint8], words: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the table's entry for each word, in the shape of `words`."""
    flat = np.ascontiguousarray(words).reshape(-1)
    entries = np.empty(flat.size, np.uint8)
    for start in range(0, flat.size, BLOCK):
        part = slice(start, start + BLOCK)
        np.take(table, flat[part], out=entries[part], mode="wrap")  # every index is in range
    return entries.reshape(words.shape)


@dataclass(frozen=True)
class LinearScale:
    """F32 scales of a linear layer's weight and of its input; number = E4M3 value × scale."""

    weight: np.float32
    input: np.float32


@dataclass(frozen=True)
class Scales:
    """All scales of a model."""

    linears: Mapping[tuple[str, int], LinearScale]
    """Scales of the linear layers, by source tensor and layer."""
    kv_cache: Mapping[int, np.float32]
    """Scales of the KV cache, by layer; empty unless the KV cache is FP8."""


class Quantizer:
    """Quantizes the weights of a model to E4M3. Can be used from any thread."""

    def __init__(self, scales: Scales) -> None:
        self._scales = scales
        self._tables: OrderedDict[tuple[str, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def quantize(self, name: str, layer: int, words: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Return BF16 words of a source tensor's layer as E4M3 bits, in the same shape."""
        key = (name, layer)
        with self._lock:
            if key not in self._tables:
                self._tables[key] = e4m3_table(self._scales.linears[key].weight)
                if len(self._tables) > TABLES:
                    self._tables.popitem(last=False)
            table = self._tables[key]
        return look_up(table, words)
