"""The weights of the CPU engine: BF16, INT8 or INT4.

INT8 has one scale for each row. INT4 has one for each group of neighbours in a row; the embedding
and the head stay INT8, because their errors reach every token. Both are symmetric, so a weight is
number · scale.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nemotron_core.errors import NemotronError

Weights = Literal["bf16", "int8", "int4"]
INT8_MAX, INT4_MAX = 127, 7
GROUPS = (128, 64, 32)
"""Sizes of INT4's groups, of which the first that divides a row is taken."""
SHRINKS = np.linspace(0.8, 1.0, 5, dtype=np.float32)
"""Fractions of a group's largest weight that are tried as the largest number times the scale. A
smaller one cuts the largest weights off and rounds all others less."""
BLOCK_ROWS = 256
"""Rows that a thread quantizes at a time, which bounds the memory."""
EIGHT_BITS = frozenset({"transformer.vocab_embedding.weight", "lm_head.weight"})
"""Weights that INT4 leaves at eight bits."""


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix [R, C]: `numbers` · `scales`."""

    numbers: NDArray[np.int8]
    """Numbers [R, C / G, G], where G is the size of a group."""
    scales: NDArray[np.float32]
    """Scales [R, C / G, 1]."""

    @property
    def values(self) -> NDArray[np.float32]:
        """The matrix [R, C] that the engine computes with."""
        return (self.numbers * self.scales).reshape(len(self.numbers), -1)


def quantize(matrix: NDArray[Any], group: int, largest: int) -> Quantized:
    """Return a matrix [R, C] with `group` columns to a scale, and numbers up to `largest`.

    `group` must divide C. Of the fractions in `SHRINKS`, each scale has the one with the smallest
    sum of squared errors. Raises `NemotronError` if the matrix holds NaN or Inf.
    """
    rows, columns = matrix.shape
    numbers = np.empty((rows, columns // group, group), np.int8)
    scales = np.empty((rows, columns // group, 1), np.float32)

    def fill(first: int) -> None:
        block = slice(first, first + BLOCK_ROWS)
        values = matrix[block].astype(np.float32).reshape(-1, columns // group, group)
        peaks = np.abs(values).max(-1, keepdims=True)
        if not np.isfinite(peaks).all():
            raise NemotronError("it holds NaN or Inf, which have no number in INT8 or INT4")
        units = np.where(peaks > 0, peaks, np.float32(1))  # squares of the weights may overflow
        best = np.full_like(peaks, np.inf)
        for shrink in SHRINKS if largest == INT4_MAX else SHRINKS[-1:]:
            scale = peaks * shrink / largest
            scale = np.where(scale > 0, scale, np.float32(1))
            rounded = np.clip(np.rint(values / scale), -largest, largest)
            error = np.square(rounded * (scale / units) - values / units).sum(-1, keepdims=True)
            is_better = error < best
            best = np.where(is_better, error, best)
            scales[block] = np.where(is_better, scale, scales[block])
            numbers[block] = np.where(is_better, rounded.astype(np.int8), numbers[block])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # NumPy frees Python's lock
        list(pool.map(fill, range(0, rows, BLOCK_ROWS)))
    return Quantized(numbers, scales)


def quantize_weight(name: str, matrix: NDArray[Any], weights: Weights) -> Quantized | None:
    """Return a weight as an engine of these `weights` has it, or `None` if it stays BF16.

    Raises `NemotronError` with its name if it holds NaN or Inf.
    """
    if weights == "bf16":
        return None
    columns = matrix.shape[1]
    group = _group(name, columns, weights)
    try:
        return quantize(matrix, group, INT8_MAX if group == columns else INT4_MAX)
    except NemotronError as error:
        remedy = "convert a model whose weights are finite; `--weights bf16` keeps them as they are"
        raise NemotronError(error.what, where=name, remedy=remedy) from error


def packed_bytes(name: str, shape: Sequence[int], weights: Weights) -> int:
    """Return the bytes of a weight in an engine of these `weights`, its scales included."""
    count = math.prod(shape)
    if weights == "bf16" or len(shape) < 2:
        return 2 * count
    group = _group(name, shape[1], weights)
    return count // (1 if group == shape[1] else 2) + 4 * count // group


def _group(name: str, columns: int, weights: Weights) -> int:
    """Return the number of columns to a scale: all of them if the weight is INT8."""
    if weights == "int8" or name in EIGHT_BITS:
        return columns
    return next((size for size in GROUPS if columns % size == 0), columns)
