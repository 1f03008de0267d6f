"""A BF16 array as it lies in an archive: a grid of chunks, each at a byte range of some member."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.source.archive import Bytes, Member
from nemotron_core.errors import NemotronError

BF16_BYTES = 2
LAYER_LIMIT = 4096
PAGE = 4096
BAND_BYTES = 1 << 20
"""What is read at a time: it is checked and used while it is in the CPU's cache."""


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

    def read_layer(self, layer: int) -> NDArray[np.uint16]:
        """BF16 words [R, C] of one layer's matrix; of a vector [1, C]."""
        chunks = self.layer_chunks(layer)
        rows = max(chunk.row + chunk.rows for chunk in chunks)
        whole = np.empty((rows, self.shape[-1]), np.uint16)
        for chunk in chunks:
            for first, band in self.read_bands(chunk):
                top, left = chunk.row + first, chunk.column
                whole[top : top + len(band), left : left + chunk.columns] = band
        return whole

    def read_rows(self, wanted: NDArray[np.int64]) -> NDArray[np.uint16]:
        """BF16 words [n, C] of some rows of a matrix, given in rising order."""
        found = np.empty((len(wanted), self.shape[-1]), np.uint16)
        for chunk in self.chunks:
            for first, band in self.read_bands(chunk):
                top = chunk.row + first
                start, end = np.searchsorted(wanted, (top, top + len(band)))
                columns = slice(chunk.column, chunk.column + chunk.columns)
                found[start:end, columns] = band[wanted[start:end] - top]
        return found

    def read_bands(
        self, chunk: Chunk, nbytes: int = BAND_BYTES
    ) -> Iterator[tuple[int, NDArray[np.uint16]]]:
        """A chunk in parts of about `nbytes`: (row of the chunk, its words from there on)."""
        rows = max(1, nbytes // chunk.pitch)
        for first in range(0, chunk.rows, rows):
            yield first, self.read(chunk, first, min(rows, chunk.rows - first))

    @property
    def layer_bytes(self) -> int:
        """Of one layer's matrix, or of the only one."""
        return self.nbytes // len(self._by_layer)

    def layer_chunks(self, layer: int) -> tuple[Chunk, ...]:
        """The chunks of one layer's matrix."""
        return self._by_layer[layer]

    @cached_property
    def _by_layer(self) -> dict[int, tuple[Chunk, ...]]:
        found: defaultdict[int, list[Chunk]] = defaultdict(list)
        for chunk in self.chunks:
            found[chunk.layer].append(chunk)
        return {layer: tuple(chunks) for layer, chunks in found.items()}

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
