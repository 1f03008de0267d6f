"""A BF16 array as it lies in an archive: a grid of chunks, each at a byte range of some member."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.archive import Bytes, Member
from nemotron_convert.errors import NemotronError

BF16_BYTES = 2
LAYER_LIMIT = 4096
PAGE = 4096


@dataclass(frozen=True)
class Chunk:
    """A stored block's part of one layer: `rows` × `columns` of its matrix from (`row`, `column`).

    Its rows lie `pitch` bytes apart from byte `offset` of `member` on.
    """

    member: Member
    offset: int
    pitch: int
    layer: int
    row: int
    rows: int
    column: int
    columns: int

    @property
    def nbytes(self) -> int:
        return self.rows * self.columns * BF16_BYTES


@dataclass(frozen=True)
class StoredArray:
    """Seen as `layers` matrices of `rows` × `columns`: [L, R, C] as it is, [L, C] as L × 1 × C.

    A matrix [R, C] and a vector [C] have one layer.
    """

    archive: Bytes
    name: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    """Of the first stored block, along the axes of `shape`."""
    chunks: tuple[Chunk, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BF16_BYTES

    def read(self, chunk: Chunk, first: int, rows: int) -> NDArray[np.uint16]:
        """BF16 words [rows, chunk.columns] of a chunk, from its row `first` on."""
        words = aligned_empty((rows, chunk.pitch // BF16_BYTES))
        self.archive.read_into(
            chunk.member, chunk.offset + first * chunk.pitch, words.data.cast("B")
        )
        return words[:, : chunk.columns]


def aligned_empty(shape: tuple[int, int]) -> NDArray[np.uint16]:
    """An array that begins on a page, as direct I/O wants it."""
    size = math.prod(shape) * BF16_BYTES
    room = np.empty(size + PAGE, np.uint8)
    start = -room.ctypes.data % PAGE
    return room[start : start + size].view(np.uint16).reshape(shape)


def as_matrices(sizes: tuple[int, ...], *, stacked: bool, missing: int) -> tuple[int, int, int]:
    """Sizes or offsets along the stored axes as (layer, row, column); `missing` for no axis."""
    if len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    if len(sizes) == 2:
        return (sizes[0], missing, sizes[1]) if stacked else (missing, *sizes)
    return missing, missing, sizes[0]


def check_layers(name: str, shape: tuple[int, ...], where: object, *, stacked: bool) -> None:
    """NemotronError for more layers than any model has: each becomes a chunk in memory."""
    if stacked and shape[0] > LAYER_LIMIT:
        raise NemotronError(f"tensor {name} has {shape[0]} layers", where=where)


def check_cover(array: StoredArray, *, stacked: bool) -> None:
    """NemotronError unless the chunks are a grid that holds every element exactly once."""
    layers, rows, columns = as_matrices(array.shape, stacked=stacked, missing=1)
    tops = sorted({chunk.row for chunk in array.chunks})
    lefts = sorted({chunk.column for chunk in array.chunks})
    heights = dict(zip(tops, _widths(tops, rows), strict=True))
    widths = dict(zip(lefts, _widths(lefts, columns), strict=True))
    cells = {(chunk.layer, chunk.row, chunk.column) for chunk in array.chunks}
    fits = all(
        chunk.layer < layers
        and chunk.rows == heights[chunk.row]
        and chunk.columns == widths[chunk.column]
        for chunk in array.chunks
    )
    whole = len(cells) == len(array.chunks) == layers * len(tops) * len(lefts)
    if not (fits and whole and tops[0] == lefts[0] == 0):
        raise NemotronError(
            f"the chunks of tensor {array.name} do not cover it exactly once",
            where=array.archive.path,
            remedy="copy the checkpoint again",
        )


def _widths(starts: list[int], end: int) -> list[int]:
    return [b - a for a, b in zip(starts, [*starts[1:], end], strict=True)]
