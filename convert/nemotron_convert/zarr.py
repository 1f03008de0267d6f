"""Arrays in zarr v2 as Megatron writes them: raw little-endian BF16 chunks beside a `.zarray`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.archive import Archive, Member, read_bytes
from nemotron_convert.errors import NemotronError

BF16_BYTES = 2
BF16_NAMES = ("bfloat16", "<V2")
METADATA_LIMIT = 1 << 16


@dataclass(frozen=True)
class Chunk:
    """One chunk file's part of one layer: `rows` × `columns` of its matrix from (`row`, `column`).

    In the file its rows lie `pitch` bytes apart from byte `offset` of `member` on; the chunks at
    the array's far edges are stored at full size.
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
class ZarrArray:
    """A BF16 array of 1 to 3 axes, cut into a grid of chunks, each a file in C order.

    Seen as `layers` matrices of `rows` × `columns`: [L, R, C] as it is, [L, C] as L × 1 × C.
    A matrix [R, C] and a vector [C] have one layer.
    """

    archive: Archive
    folder: str
    shape: tuple[int, ...]
    stacked: bool
    layers: int
    rows: int
    columns: int
    chunk_layers: int
    chunk_rows: int
    chunk_columns: int

    @property
    def chunks_shape(self) -> tuple[int, ...]:
        """Sizes of a chunk along the axes of `shape`."""
        sizes = (self.chunk_layers, self.chunk_rows, self.chunk_columns)
        return tuple(size for size, axis in zip(sizes, self._axes, strict=True) if axis)

    @property
    def nbytes(self) -> int:
        return self.layers * self.rows * self.columns * BF16_BYTES

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk of every layer, in the grid's order; NemotronError if a file is missing."""
        pitch = self.chunk_columns * BF16_BYTES
        for layer in range(self.layers):
            for row in range(0, self.rows, self.chunk_rows):
                for column in range(0, self.columns, self.chunk_columns):
                    yield Chunk(
                        member=self._file(layer, row, column),
                        offset=(layer % self.chunk_layers) * self.chunk_rows * pitch,
                        pitch=pitch,
                        layer=layer,
                        row=row,
                        rows=min(self.chunk_rows, self.rows - row),
                        column=column,
                        columns=min(self.chunk_columns, self.columns - column),
                    )

    def read(self, chunk: Chunk, first: int, rows: int) -> NDArray[np.uint16]:
        """BF16 words [rows, chunk.columns] of a chunk, from its row `first` on."""
        words = np.empty((rows, chunk.pitch // BF16_BYTES), np.uint16)
        self.archive.read_into(
            chunk.member, chunk.offset + first * chunk.pitch, words.data.cast("B")
        )
        return words[:, : chunk.columns]

    @property
    def _axes(self) -> tuple[bool, bool, bool]:
        """Which of layer, row and column are axes of the stored array."""
        return self.stacked, len(self.shape) == (3 if self.stacked else 2), True

    def _file(self, layer: int, row: int, column: int) -> Member:
        index = (
            layer // self.chunk_layers,
            row // self.chunk_rows,
            column // self.chunk_columns,
        )
        name = self.folder + ".".join(
            str(i) for i, axis in zip(index, self._axes, strict=True) if axis
        )
        member = self.archive.members.get(name)
        if member is None:
            raise NemotronError(
                f"chunk {name} is missing, and its fill value is null",
                where=self.archive.path,
                remedy="copy the checkpoint again",
            )
        size = self.chunk_layers * self.chunk_rows * self.chunk_columns * BF16_BYTES
        if member.size != size:
            raise NemotronError(
                f"chunk {name} has {member.size} bytes, its .zarray says {size}",
                where=self.archive.path,
                remedy="copy the checkpoint again",
            )
        return member


def open_zarr(archive: Archive, folder: str, *, stacked: bool) -> ZarrArray:
    """The array in `folder` (ends with "/"); NemotronError if its metadata makes no sense.

    `stacked`: axis 0 counts layers.
    """
    where = f"{archive.path}: {folder}.zarray"
    try:
        meta = json.loads(read_bytes(archive, folder + ".zarray", limit=METADATA_LIMIT))
    except (ValueError, RecursionError) as error:
        raise NemotronError(f"not JSON: {error}", where=where) from error
    if not isinstance(meta, dict):
        raise NemotronError("not a JSON object", where=where)
    for key, allowed in (
        ("zarr_format", (2,)),
        ("dtype", BF16_NAMES),
        ("order", ("C",)),
        ("compressor", (None,)),
        ("filters", (None, [])),
    ):
        if meta.get(key) not in allowed:
            raise NemotronError(
                f"{key} is {meta.get(key)!r}", where=where, remedy=f"only {allowed[0]!r} is read"
            )
    shape, chunks = (_sizes(meta.get(key), key, where) for key in ("shape", "chunks"))
    if len(shape) != len(chunks) or len(shape) not in ((2, 3) if stacked else (1, 2)):
        raise NemotronError(f"shape {list(shape)} with chunks {list(chunks)}", where=where)
    matrix, chunk = _as_matrices(shape, stacked), _as_matrices(chunks, stacked)
    return ZarrArray(archive, folder, shape, stacked, *matrix, *chunk)


def _as_matrices(sizes: tuple[int, ...], stacked: bool) -> tuple[int, int, int]:
    if len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    if len(sizes) == 2:
        return (sizes[0], 1, sizes[1]) if stacked else (1, sizes[0], sizes[1])
    return 1, 1, sizes[0]


def _sizes(value: object, key: str, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 < n < 1 << 40 for n in value):
        raise NemotronError(f"{key} is {value!r}, not a list of positive integers", where=where)
    return tuple(value)
