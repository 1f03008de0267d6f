"""FP8 quantization against E4M3's definition, without torch."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nemotron_convert.target import fp8
from nemotron_convert.target.copier import add_gamma
from nemotron_convert.target.fp8 import (
    BLOCK,
    TABLES,
    LinearScale,
    Quantizer,
    Scales,
    amax_bits,
    bf16_from_bits,
    e4m3_table,
    look_up,
    scale_of,
)

NAN = 0x7F


def e4m3(bits: int) -> float:
    """The number of the bits s eeee mmm: exponent bias 7, no infinities (OCP 8-bit formats)."""
    exponent, mantissa = bits >> 3 & 15, bits & 7
    number = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -number if bits & 0x80 else number


MAGNITUDES = np.array([e4m3(bits) for bits in range(NAN)])
"""All finite magnitudes in ascending order: their positions are their bits."""


def bf16_numbers() -> NDArray[np.float32]:
    """All 65,536 BF16 numbers by their bits: a BF16 number is the upper half of a float32."""
    return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)


def nearest(quotients: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bits of the nearest E4M3 numbers by distance, ties to the even bits, ±448 beyond that."""
    magnitudes = np.minimum(np.abs(quotients.astype(np.float64)), 448.0)
    above = np.searchsorted(MAGNITUDES, magnitudes).clip(1, NAN - 1)
    below = above - 1
    up, down = MAGNITUDES[above] - magnitudes, magnitudes - MAGNITUDES[below]
    bits = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return np.where(np.signbit(quotients), bits | 0x80, bits).astype(np.uint8)


# At the scale of an amax of 1.078125, multiplying by the reciprocal gives 30 other values.
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.003, 1 / 448, 7e-5, 3e4, 1e-30, 1.078125 / 448])
def test_the_table_is_the_nearest_e4m3_number(scale: float) -> None:
    numbers, divisor = bf16_numbers(), np.float32(scale)
    with np.errstate(over="ignore", invalid="ignore"):
        quotients = numbers / divisor
    table = e4m3_table(divisor)
    assert table.shape == (1 << 16,)
    is_number = ~np.isnan(numbers)
    assert (table[is_number] == nearest(quotients[is_number])).all()
    assert (table[~is_number] & 0x7F == NAN).all()


@pytest.mark.parametrize(
    ("bf16", "bits"),
    [
        (0x4188, 0x58),  # 17, between 16 and 18: to the even 16
        (0x4198, 0x5A),  # 19, between 18 and 20: to the even 20
        (0xC198, 0xDA),
        (0x3A80, 0x00),  # 2⁻¹⁰, half of the smallest number
        (0x3AC0, 0x01),  # 1.5 · 2⁻¹⁰
        (0x43E0, 0x7E),  # 448
        (0x43E8, 0x7E),  # 464, which would round to the NaN
        (0x7F7F, 0x7E),  # BF16's largest number
        (0x7F80, 0x7E),
        (0xFF80, 0xFE),
        (0x0000, 0x00),
        (0x8000, 0x80),
    ],
)
def test_rounding_and_clamping(bf16: int, bits: int) -> None:
    assert e4m3_table(np.float32(1))[bf16] == bits


def test_amax_ignores_the_sign() -> None:
    words = np.array([[0x3F80, 0x4000], [0xC3E1, 0x43E0]], np.uint16)  # 1, 2, -450, 448
    assert amax_bits(words) == 0x43E1
    assert bf16_from_bits(0x43E1) == 450.0
    assert amax_bits(np.array([0x8000], np.uint16)) == 0
    assert amax_bits(np.empty((0, 3), np.uint16)) == 0


def test_scale_is_amax_over_448_in_f32() -> None:
    for amax in (1.0, 448.0, 2.0**-120, 3.0e38):
        assert scale_of(amax) == np.float32(amax) / np.float32(448)
        assert scale_of(amax).dtype == np.float32
    assert scale_of(0.0) == 1
    assert scale_of(0.0).dtype == np.float32
    assert e4m3_table(scale_of(3.0))[0x4040] == 0x7E  # amax itself becomes 448


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_looking_up_any_number_of_words(size: int) -> None:
    generator = np.random.default_rng(size)
    table = generator.integers(0, 256, 1 << 16, np.uint8)
    words = generator.integers(0, 1 << 16, size, np.uint16)
    assert (look_up(table, words) == table[words]).all()


def test_words_are_looked_up_64_ki_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls, and their indexes of eight bytes each fit into a core's cache."""
    take, sizes = np.take, []

    def counted(table: np.ndarray, words: np.ndarray, **options: Any) -> None:
        sizes.append(words.size)
        take(table, words, **options)

    monkeypatch.setattr(np, "take", counted)
    words = np.zeros((3, 1 << 16), np.uint16)
    look_up(np.zeros(1 << 16, np.uint8), words)
    assert sizes == [1 << 16] * 3


def test_looking_up_keeps_the_shape_of_any_view() -> None:
    generator = np.random.default_rng(0)
    table = generator.integers(0, 256, 1 << 16, np.uint8)
    words = generator.integers(0, 1 << 16, (40, 30), np.uint16)
    for view in (words, words.T, words[:, 3:20], words[::2, ::3]):
        assert look_up(table, view).shape == view.shape
        assert (look_up(table, view) == table[view]).all()


def scales(count: int) -> Scales:
    """Layer n of the tensor "w" has the weight scale 2ⁿ and an input scale that is never used."""
    linears = {
        ("w", layer): LinearScale(np.float32(2.0**layer), np.float32(99)) for layer in range(count)
    }
    return Scales(linears, {})


def test_scales_cannot_be_changed() -> None:
    """The threads of a `Quantizer` share them."""
    changed = scales(1)
    with pytest.raises(FrozenInstanceError):
        changed.linears = {}  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        changed.linears["w", 0].weight = np.float32(2)  # type: ignore[misc]


def test_a_quantizer_uses_the_weights_scale_of_the_layer() -> None:
    quantizer = Quantizer(scales(3 * TABLES))
    words = np.array([[0x3F80, 0xC000]], np.uint16)  # 1, -2
    for layer in (*range(3 * TABLES), 0, 5):
        table = e4m3_table(np.float32(2.0**layer))
        assert (quantizer.quantize("w", layer, words) == table[words]).all()


def test_a_quantizer_keeps_the_latest_8_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make_table(scale: np.float32) -> NDArray[np.uint8]:
        made.append(int(np.log2(scale)))
        return e4m3_table(scale)

    monkeypatch.setattr(fp8, "e4m3_table", make_table)
    quantizer = Quantizer(scales(9))
    words = np.zeros((1, 1), np.uint16)
    for layer in (*range(8), *range(8)):
        quantizer.quantize("w", layer, words)
    assert made == list(range(8))  # all are kept
    for layer in (8, 1, 0):
        quantizer.quantize("w", layer, words)
    assert made[8:] == [8, 0]  # the oldest one, of layer 0, made room


@pytest.mark.parametrize(
    ("gamma", "offset", "rounded"),
    [
        (0x3B80, 1, 0x3F80),  # 1 + 2⁻⁸, halfway: to the even 1
        (0x3C40, 1, 0x3F82),  # 1 + 3 · 2⁻⁸, halfway: to the even 1 + 2⁻⁶
        (0xBF80, 1, 0x0000),
        (0x3F80, -1, 0x0000),
        (0x4000, -1, 0x3F80),
    ],
)
def test_gamma_is_added_in_f32_and_rounded_to_even(gamma: int, offset: int, rounded: int) -> None:
    assert add_gamma(np.array([[gamma]], np.uint16), offset).tolist() == [[rounded]]
