"""Reader of zarr v2 arrays as Megatron writes them: little-endian chunks and a `.zarray`."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from nemotron_convert.source.archive import (
    Archive,
    Bytes,
    Member,
    read_bytes,
    refuse_pointer,
    short_name,
)
from nemotron_convert.source.arrays import (
    Chunk,
    StoredArray,
    as_layer_row_column,
    as_stored_axes,
    check_shape,
)
from nemotron_convert.source.compression import (
    CHUNK_LIMIT,
    ChunkCache,
    DecodedChunks,
    Decoder,
    find_decoder,
    max_compressed_size,
)
from nemotron_convert.source.number_types import WeightType
from nemotron_core.errors import NemotronError

DTYPES = {
    "bfloat16": WeightType.BF16,
    "<V2": WeightType.BF16,
    "<f2": WeightType.F16,
    "<f4": WeightType.F32,
}
"""The types that are read, by the names that zarr gives them; BF16 has two."""
METADATA_NAME = ".zarray"
METADATA_NAMES = (METADATA_NAME, ".zattrs")
DESCRIPTION_LIMIT = 100
"""Largest number of characters of an array's description."""
METADATA_LIMIT = 1 << 16
"""Largest size in bytes of a `.zarray`."""


@dataclass(frozen=True)
class _Metadata:
    """The content of a `.zarray`."""

    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    dtype: WeightType
    decoder: Decoder | None

    @property
    def chunk_bytes(self) -> int:
        """Size in bytes of a decoded chunk; those at the array's edges are padded to it."""
        return math.prod(self.chunk_shape) * self.dtype.itemsize


class Zarr:
    """The arrays of one checkpoint. Each is a folder below `weights` that has its tensor's name."""

    def __init__(self, archive: Archive, weights: str) -> None:
        self._archive = archive
        self._cache = ChunkCache()
        self._folders: defaultdict[str, dict[str, Member]] = defaultdict(dict)
        for name, member in archive.members.items():
            if name.startswith(weights):
                folder, slash, rest = name.removeprefix(weights).partition("/")
                if slash:  # the files beside the folders describe the whole checkpoint
                    self._folders[folder][rest] = member

    @property
    def names(self) -> Collection[str]:
        """Names of all arrays and of all objects that are no arrays."""
        return self._folders.keys()

    def describe(self, name: str) -> str:
        """Return the type and the shape of an array for a person, or that it is none."""
        member = self._folders[name].get(METADATA_NAME)
        if member is None:
            return "not an array"
        try:
            metadata = json.loads(read_bytes(self._archive, member.name, limit=METADATA_LIMIT))
            return f"{metadata['dtype']} {metadata['shape']}"[:DESCRIPTION_LIMIT]
        except (ValueError, KeyError, TypeError, RecursionError, NemotronError):
            return "an array that cannot be read"

    def open(self, name: str, *, stacked: bool) -> StoredArray:
        """Return the array `name`; with `stacked`, its axis 0 counts layers.

        Raises `NemotronError` if the array is missing, its metadata is not valid, a chunk's file is
        missing or has a wrong size, or a file is not a chunk. A missing chunk is an error; zarr's
        fill value is never used.
        """
        files = self._folders.get(name, {})
        if METADATA_NAME not in files:
            raise NemotronError(f"tensor {name} is missing", where=self._archive.path)
        where = f"{self._archive.path}: {files[METADATA_NAME].name}"
        metadata = _read_metadata(self._archive, files[METADATA_NAME], where)
        shape, chunk_shape = metadata.shape, metadata.chunk_shape
        if len(shape) != len(chunk_shape):
            raise NemotronError(f"shape {list(shape)} with chunks {list(chunk_shape)}", where=where)
        check_shape(name, shape, where, stacked=stacked)
        data: Bytes = self._archive
        if metadata.decoder is not None:
            if metadata.chunk_bytes > CHUNK_LIMIT:
                raise NemotronError(
                    f"chunks of {metadata.chunk_bytes} bytes are too large to be compressed",
                    where=where,
                    remedy="save the model with smaller chunks or without a compressor",
                )
            data = DecodedChunks(self._archive, metadata.decoder, metadata.chunk_bytes, self._cache)
        chunks = tuple(self._chunks(name, metadata, stacked=stacked))
        self._check_files(name, {chunk.member.name for chunk in chunks})
        return StoredArray(data, name, shape, chunk_shape, chunks, metadata.dtype)

    def _chunks(self, name: str, metadata: _Metadata, *, stacked: bool) -> Iterator[Chunk]:
        """Yield the chunks of the array's grid in C order, cut off at the array's edges."""
        shape, chunk_shape = metadata.shape, metadata.chunk_shape
        layers, rows, columns = as_layer_row_column(shape, stacked=stacked, missing=1)
        chunk_layers, chunk_rows, chunk_columns = as_layer_row_column(
            chunk_shape, stacked=stacked, missing=1
        )
        pitch = chunk_columns * metadata.dtype.itemsize
        is_matrix = len(shape) == (3 if stacked else 2)
        for layer in range(layers):
            for row in range(0, rows, chunk_rows):
                for column in range(0, columns, chunk_columns):
                    index = (layer // chunk_layers, row // chunk_rows, column // chunk_columns)
                    axes = as_stored_axes(index, stacked=stacked, is_matrix=is_matrix)
                    yield Chunk(
                        member=self._file(name, ".".join(map(str, axes)), metadata),
                        offset=(layer % chunk_layers) * chunk_rows * pitch,
                        pitch=pitch,
                        layer=layer,
                        row=row,
                        rows=min(chunk_rows, rows - row),
                        column=column,
                        columns=min(chunk_columns, columns - column),
                    )

    def _file(self, name: str, chunk: str, metadata: _Metadata) -> Member:
        """Return a chunk's file. Raises `NemotronError` if it is missing or has a wrong size."""
        member = self._folders[name].get(chunk)
        if member is None:
            raise NemotronError(
                f"chunk {chunk} of tensor {name} is missing",
                where=self._archive.path,
                remedy="copy the checkpoint again",
            )
        size = metadata.chunk_bytes
        if metadata.decoder is None and member.size != size:
            fault = f"has {member.size} bytes, its .zarray says {size}"
        elif metadata.decoder and member.size > max_compressed_size(size):
            fault = f"has {member.size} bytes, more than {size} can be compressed to"
        else:
            return member
        refuse_pointer(self._archive, member)
        raise NemotronError(
            f"chunk {member.name} {fault}",
            where=self._archive.path,
            remedy="copy the checkpoint again",
        )

    def _check_files(self, name: str, chunks: set[str]) -> None:
        """Raise `NemotronError` if a file of the array is no chunk of its grid.

        A chunk outside the grid would mean that the array's shape is not the stored one.
        """
        for rest, member in self._folders[name].items():
            if rest not in METADATA_NAMES and member.name not in chunks:
                raise NemotronError(
                    f"{short_name(member.name)} is no chunk of tensor {name}",
                    where=self._archive.path,
                    remedy="remove it, or copy the checkpoint again",
                )


def _read_metadata(archive: Archive, member: Member, where: str) -> _Metadata:
    """Read a `.zarray`. Raises `NemotronError` if it is not valid or describes another encoding."""
    try:
        metadata = json.loads(read_bytes(archive, member.name, limit=METADATA_LIMIT))
    except (ValueError, RecursionError) as error:
        raise NemotronError(f"not JSON: {error}"[:200], where=where) from error
    if not isinstance(metadata, dict):
        raise NemotronError("not a JSON object", where=where)
    for key, allowed in (
        ("zarr_format", (2,)),
        ("dtype", tuple(DTYPES)),
        ("order", ("C",)),
        ("filters", (None, [])),
    ):
        if metadata.get(key) not in allowed:
            raise NemotronError(
                f"{key} is {metadata.get(key)!r}"[:100],
                where=where,
                remedy=f"what is read: {', '.join(map(repr, allowed))}",
            )
    if metadata.get("dimension_separator", ".") != ".":
        raise NemotronError("chunks are in folders, not named i.j.k", where=where)
    return _Metadata(
        _sizes(metadata.get("shape"), "shape", where),
        _sizes(metadata.get("chunks"), "chunks", where),
        DTYPES[metadata["dtype"]],
        find_decoder(metadata.get("compressor"), where),
    )


def _sizes(value: object, key: str, where: str) -> tuple[int, ...]:
    """Return a list of positive integers as a tuple, or raise `NemotronError`."""
    if not isinstance(value, list) or not all(type(n) is int and 0 < n < 1 << 40 for n in value):
        raise NemotronError(
            f"{key} is {value!r}"[:100] + ", not a list of positive integers", where=where
        )
    return tuple(value)
