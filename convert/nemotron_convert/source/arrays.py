"""An array as it is stored in an archive: a grid of chunks, each a byte range of a member."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.source.archive import Bytes, Member
from nemotron_convert.source.number_types import (
    BF16_BYTES,
    NO_LOSS,
    RangeLoss,
    WeightType,
    to_bf16,
    to_f32,
)
from nemotron_core.errors import NemotronError

LAYER_LIMIT = 4096
"""Largest number of layers that is accepted, far above that of any model."""
PAGE = 4096
"""Bytes of a page of memory, to which direct I/O wants its buffers aligned."""
BAND_BYTES = 1 << 20
"""Bytes read at a time, so that they are checked and copied while they are in the CPU's cache."""


@dataclass(frozen=True)
class Chunk:
    """The part of one layer's matrix that one stored block holds.

    It is the rectangle of `rows` × `columns` elements from (`row`, `column`) on. Its rows are
    stored `pitch` bytes apart, from byte `offset` of `member` on.
    """

    member: Member
    offset: int
    pitch: int
    layer: int
    row: int
    rows: int
    column: int
    columns: int


@dataclass(frozen=True)
class StoredArray:
    """A stored array, seen as one matrix [R, C] for each layer.

    The shape [L, R, C] is L such matrices, and [L, C] is L matrices of one row. A matrix [R, C] and
    a vector [C] outside the layers have the layer 0 only.
    """

    archive: Bytes
    name: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    """Shape of the first stored block, with the axes of `shape`."""
    chunks: tuple[Chunk, ...]
    dtype: WeightType = WeightType.BF16

    @property
    def nbytes(self) -> int:
        """Size in bytes as it is stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read_layer(self, layer: int) -> NDArray[np.uint16]:
        """Return the BF16 words [R, C] of one layer's matrix; those of a vector are [1, C]."""
        chunks = self.layer_chunks(layer)
        rows = max(chunk.row + chunk.rows for chunk in chunks)
        matrix = np.empty((rows, self.shape[-1]), np.uint16)
        for chunk in chunks:
            for first, band in self.read_bands(chunk):
                top, left = chunk.row + first, chunk.column
                matrix[top : top + len(band), left : left + chunk.columns] = band
        return matrix

    def read_numbers(self) -> NDArray[np.float32]:
        """Return a small matrix [R, C] outside the layers, exactly as it is stored, in F32.

        A vector is [1, C].
        """
        rows = max(chunk.row + chunk.rows for chunk in self.chunks)
        matrix = np.empty((rows, self.shape[-1]), np.float32)
        for chunk in self.chunks:
            stored = self._read_stored(chunk, 0, chunk.rows)
            top, left = chunk.row, chunk.column
            matrix[top : top + chunk.rows, left : left + chunk.columns] = to_f32(
                stored, self.dtype, chunk.columns
            )
        return matrix

    def read_rows(self, row_numbers: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Return the BF16 words [n, C] of `row_numbers` [n] of a matrix; these must ascend."""
        rows = np.empty((len(row_numbers), self.shape[-1]), np.uint16)
        for chunk in self.chunks:
            for first, band in self.read_bands(chunk):
                top = chunk.row + first
                start, end = np.searchsorted(row_numbers, (top, top + len(band)))
                columns = slice(chunk.column, chunk.column + chunk.columns)
                rows[start:end, columns] = band[row_numbers[start:end] - top]
        return rows

    def read_bands(
        self, chunk: Chunk, nbytes: int = BAND_BYTES
    ) -> Iterator[tuple[int, NDArray[np.uint16]]]:
        """Yield a chunk in bands of about `nbytes`: (first row within the chunk, BF16 words)."""
        rows = max(1, nbytes // chunk.pitch)
        for first in range(0, chunk.rows, rows):
            yield first, self.read(chunk, first, min(rows, chunk.rows - first))

    @property
    def layer_bytes(self) -> int:
        """Size in bytes of one layer's matrix in BF16."""
        return math.prod(self.shape) * BF16_BYTES // len(self._by_layer)

    def layer_chunks(self, layer: int) -> tuple[Chunk, ...]:
        """Return the chunks of one layer's matrix."""
        return self._by_layer[layer]

    @cached_property
    def _by_layer(self) -> dict[int, tuple[Chunk, ...]]:
        by_layer: defaultdict[int, list[Chunk]] = defaultdict(list)
        for chunk in self.chunks:
            by_layer[chunk.layer].append(chunk)
        return {layer: tuple(chunks) for layer, chunks in by_layer.items()}

    def read(self, chunk: Chunk, first: int, rows: int) -> NDArray[np.uint16]:
        """Return the BF16 words [rows, chunk.columns] of a chunk, from its row `first` on."""
        return self.read_checked(chunk, first, rows)[0]

    def read_checked(
        self, chunk: Chunk, first: int, rows: int
    ) -> tuple[NDArray[np.uint16], RangeLoss]:
        """Return what `read` returns, and what was lost if the array is not stored as BF16."""
        stored = self._read_stored(chunk, first, rows)
        if self.dtype is WeightType.BF16:
            return stored[:, : chunk.columns], NO_LOSS
        return to_bf16(stored, self.dtype, chunk.columns)

    def read_exact(self, chunk: Chunk, first: int, rows: int) -> NDArray[np.float32]:
        """Return what `read` returns in F32, exactly as it is stored."""
        return to_f32(self._read_stored(chunk, first, rows), self.dtype, chunk.columns)

    def _read_stored(self, chunk: Chunk, first: int, rows: int) -> NDArray[np.uint16]:
        """Return rows of a chunk as they are stored, padding included."""
        stored = aligned_empty((rows, chunk.pitch // BF16_BYTES))
        self.archive.read_into(
            chunk.member, chunk.offset + first * chunk.pitch, stored.data.cast("B")
        )
        return stored


def stack(name: str, layers: Sequence[StoredArray], where: object) -> StoredArray:
    """Return the arrays of single layers, in order, as one array whose axis 0 counts layers.

    Raises `NemotronError` if they differ in shape or type.
    """
    first = layers[0]
    for number, array in enumerate(layers):
        if (array.shape, array.dtype) != (first.shape, first.dtype):
            raise NemotronError(
                f"tensor {array.name} is {array.dtype.value} {list(array.shape)}, that of layer 0 "
                f"{first.dtype.value} {list(first.shape)}",
                where=where,
            )
        if array.archive != first.archive:
            raise NemotronError(
                f"layer {number} of tensor {name} has other chunks or is compressed in another way",
                where=where,
            )
    chunks = tuple(
        replace(chunk, layer=number)
        for number, array in enumerate(layers)
        for chunk in array.chunks
    )
    shape, chunk_shape = (len(layers), *first.shape), (1, *first.chunk_shape)
    return StoredArray(first.archive, name, shape, chunk_shape, chunks, first.dtype)


def take_layer(array: StoredArray, layer: int) -> StoredArray:
    """Return one layer of an array whose axis 0 counts layers, as an array by itself."""
    chunks = tuple(replace(chunk, layer=0) for chunk in array.layer_chunks(layer))
    return replace(array, shape=array.shape[1:], chunk_shape=array.chunk_shape[1:], chunks=chunks)


def aligned_empty(shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Return an uninitialised array that begins on a page, as direct I/O requires."""
    size = math.prod(shape) * BF16_BYTES
    room = np.empty(size + PAGE, np.uint8)
    start = -room.ctypes.data % PAGE
    return room[start : start + size].view(np.uint16).reshape(shape)


def as_layer_row_column(
    values: tuple[int, ...], *, stacked: bool, missing: int
) -> tuple[int, int, int]:
    """Return sizes or offsets along the stored axes as (layer, row, column).

    An axis that the array does not have gets the value `missing`.

    >>> as_layer_row_column((4, 128), stacked=True, missing=1)
    (4, 1, 128)
    >>> as_layer_row_column((512, 128), stacked=False, missing=1)
    (1, 512, 128)
    """
    if len(values) == 3:
        return values[0], values[1], values[2]
    if len(values) == 2:
        return (values[0], missing, values[1]) if stacked else (missing, *values)
    return missing, missing, values[0]


def as_stored_axes(
    values: tuple[int, int, int], *, stacked: bool, is_matrix: bool
) -> tuple[int, ...]:
    """Return the values along (layer, row, column) for the axes that the array has.

    >>> as_stored_axes((4, 1, 128), stacked=True, is_matrix=False)
    (4, 128)
    """
    axes = (stacked, is_matrix, True)
    return tuple(value for value, exists in zip(values, axes, strict=True) if exists)


def check_shape(name: str, shape: tuple[int, ...], where: object, *, stacked: bool) -> None:
    """Raise `NemotronError` if a tensor has a wrong number of axes or more than LAYER_LIMIT layers.

    Each layer becomes at least one `Chunk` in memory.
    """
    if len(shape) not in ((2, 3) if stacked else (1, 2)):
        raise NemotronError(f"tensor {name} has shape {list(shape)}", where=where)
    if stacked and shape[0] > LAYER_LIMIT:
        raise NemotronError(f"tensor {name} has {shape[0]} layers", where=where)


def check_cover(array: StoredArray, *, stacked: bool) -> None:
    """Raise `NemotronError` unless the chunks are a grid that holds every element exactly once."""
    layers, rows, columns = as_layer_row_column(array.shape, stacked=stacked, missing=1)
    tops = sorted({chunk.row for chunk in array.chunks})
    lefts = sorted({chunk.column for chunk in array.chunks})
    heights = dict(zip(tops, _gaps(tops, rows), strict=True))
    widths = dict(zip(lefts, _gaps(lefts, columns), strict=True))
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


def _gaps(starts: list[int], end: int) -> list[int]:
    """Return the distance from each start to the next one, and from the last one to `end`."""
    return [b - a for a, b in zip(starts, [*starts[1:], end], strict=True)]
