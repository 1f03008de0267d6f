"""The types of stored numbers, and their conversion to BF16 and to F32."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BF16_BYTES = 2
EXPONENT = 0x7F80
"""BF16's exponent bits, which are all set in NaN and Inf."""


class WeightType(Enum):
    """The type in which an array is stored; whatever it is, arrays are read as BF16."""

    BF16 = "BF16"
    F16 = "F16"
    F32 = "F32"

    @property
    def itemsize(self) -> int:
        """Size of a number in bytes."""
        return 4 if self is WeightType.F32 else 2


@dataclass(frozen=True)
class RangeLoss:
    """Numbers of values that BF16 cannot hold, not even rounded to its precision."""

    overflow: int = 0
    """Finite values that became Inf."""
    underflow: int = 0
    """Values other than 0 that became 0."""


NO_LOSS = RangeLoss()


def to_f32(stored: NDArray[np.uint16], dtype: WeightType, columns: int) -> NDArray[np.float32]:
    """Return the first `columns` columns of stored numbers in F32, which holds each exactly."""
    number_type = {
        WeightType.BF16: ml_dtypes.bfloat16,
        WeightType.F16: np.float16,
        WeightType.F32: np.float32,
    }[dtype]
    numbers: NDArray[np.float32] = stored.view(number_type)[:, :columns].astype(np.float32)
    return numbers


def to_bf16(
    stored: NDArray[np.uint16], dtype: WeightType, columns: int
) -> tuple[NDArray[np.uint16], RangeLoss]:
    """Return the first `columns` columns of F16 or F32 numbers as BF16 words, and what was lost.

    Rounds to nearest, ties to even. BF16 has the range of F32 but for the rounding at its ends, and
    more than that of F16.
    """
    return round_to_bf16(to_f32(stored, dtype, columns))


def round_to_bf16(numbers: NDArray[np.float32]) -> tuple[NDArray[np.uint16], RangeLoss]:
    """Return F32 numbers as BF16 words, and what was lost. Rounds to nearest, ties to even."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = numbers.astype(ml_dtypes.bfloat16)
    words: NDArray[np.uint16] = rounded.view(np.uint16)
    magnitudes = words & 0x7FFF
    overflow = np.isfinite(numbers) & (magnitudes >= EXPONENT)
    underflow = (numbers != 0) & (magnitudes == 0)
    return words, RangeLoss(int(overflow.sum()), int(underflow.sum()))
