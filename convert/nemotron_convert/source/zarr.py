"""Arrays in zarr v2 as Megatron writes them: little-endian BF16 chunks beside a `.zarray`."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from nemotron_convert.source.archive import (
    Archive,
    Bytes,
    Member,
    read_bytes,
    refuse_pointer,
    short_name,
)
from nemotron_convert.source.arrays import BF16_BYTES, Chunk, StoredArray, as_matrices, check_layers
from nemotron_convert.source.compression import (
    CHUNK_LIMIT,
    ChunkCache,
    Decoded,
    Decoder,
    find_decoder,
    max_compressed_size,
)
from nemotron_core.errors import NemotronError

BF16_NAMES = ("bfloat16", "<V2")
METADATA_NAME = ".zarray"
METADATA_NAMES = (METADATA_NAME, ".zattrs")
METADATA_LIMIT = 1 << 16


@dataclass(frozen=True)
class _Metadata:
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    decoder: Decoder | None

    @property
    def chunk_bytes(self) -> int:
        """Of every chunk, once decoded: those at the array's far edges are stored at full size."""
        return math.prod(self.chunk_shape) * BF16_BYTES


class Zarr:
    """The arrays of one checkpoint: each is a folder below `weights`, under its tensor's name."""

    def __init__(self, archive: Archive, weights: str) -> None:
        self._archive = archive
        self._cache = ChunkCache()
        self._folders: defaultdict[str, dict[str, Member]] = defaultdict(dict)
        for name, member in archive.members.items():
            if name.startswith(weights):
                folder, _, rest = name.removeprefix(weights).partition("/")
                self._folders[folder][rest] = member

    def __contains__(self, name: str) -> bool:
        return METADATA_NAME in self._folders.get(name, ())

    def open(self, name: str, *, stacked: bool) -> StoredArray:
        """The array of that name; `stacked`: axis 0 counts layers.

        NemotronError if its metadata makes no sense, a chunk's file is missing or of another size,
        or there is a file that is no chunk. No fill value ever stands in for a chunk.
        """
        if name not in self:
            raise NemotronError(f"tensor {name} is missing", where=self._archive.path)
        files = self._folders[name]
        where = f"{self._archive.path}: {files[METADATA_NAME].name}"
        metadata = _read_metadata(self._archive, files[METADATA_NAME], where)
        shape, chunk_shape = metadata.shape, metadata.chunk_shape
        if len(shape) != len(chunk_shape) or len(shape) not in ((2, 3) if stacked else (1, 2)):
            raise NemotronError(f"shape {list(shape)} with chunks {list(chunk_shape)}", where=where)
        check_layers(name, shape, where, stacked=stacked)
        data: Bytes = self._archive
        if metadata.decoder is not None:
            if metadata.chunk_bytes > CHUNK_LIMIT:
                raise NemotronError(
                    f"chunks of {metadata.chunk_bytes} bytes are too large to be compressed",
                    where=where,
                    remedy="save the model with smaller chunks or without a compressor",
                )
            data = Decoded(self._archive, metadata.decoder, metadata.chunk_bytes, self._cache)
        chunks = tuple(self._chunks(name, metadata, stacked=stacked))
        self._check_files(name, {chunk.member.name for chunk in chunks})
        return StoredArray(data, name, shape, chunk_shape, chunks)

    def _chunks(self, name: str, metadata: _Metadata, *, stacked: bool) -> Iterator[Chunk]:
        """The grid in order."""
        shape, chunk_shape = metadata.shape, metadata.chunk_shape
        layers, rows, columns = as_matrices(shape, stacked=stacked, missing=1)
        chunk_layers, chunk_rows, chunk_columns = as_matrices(
            chunk_shape, stacked=stacked, missing=1
        )
        pitch = chunk_columns * BF16_BYTES
        axes = (stacked, len(shape) == (3 if stacked else 2), True)
        for layer in range(layers):
            for row in range(0, rows, chunk_rows):
                for column in range(0, columns, chunk_columns):
                    index = (layer // chunk_layers, row // chunk_rows, column // chunk_columns)
                    named = (str(i) for i, axis in zip(index, axes, strict=True) if axis)
                    yield Chunk(
                        member=self._file(name, ".".join(named), metadata),
                        offset=(layer % chunk_layers) * chunk_rows * pitch,
                        pitch=pitch,
                        layer=layer,
                        row=row,
                        rows=min(chunk_rows, rows - row),
                        column=column,
                        columns=min(chunk_columns, columns - column),
                    )

    def _file(self, name: str, chunk: str, metadata: _Metadata) -> Member:
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
        """Nothing but the grid: a chunk beyond it belongs to an array of another shape."""
        for rest, member in self._folders[name].items():
            if rest not in METADATA_NAMES and member.name not in chunks:
                raise NemotronError(
                    f"{short_name(member.name)} is no chunk of tensor {name}",
                    where=self._archive.path,
                    remedy="remove it, or copy the checkpoint again",
                )


def _read_metadata(archive: Archive, member: Member, where: str) -> _Metadata:
    try:
        meta = json.loads(read_bytes(archive, member.name, limit=METADATA_LIMIT))
    except (ValueError, RecursionError) as error:
        raise NemotronError(f"not JSON: {error}"[:200], where=where) from error
    if not isinstance(meta, dict):
        raise NemotronError("not a JSON object", where=where)
    for key, allowed in (
        ("zarr_format", (2,)),
        ("dtype", BF16_NAMES),
        ("order", ("C",)),
        ("filters", (None, [])),
    ):
        if meta.get(key) not in allowed:
            raise NemotronError(
                f"{key} is {meta.get(key)!r}"[:100],
                where=where,
                remedy=f"only {allowed[0]!r} is read",
            )
    if meta.get("dimension_separator", ".") != ".":
        raise NemotronError("chunks are in folders, not named i.j.k", where=where)
    return _Metadata(
        _sizes(meta.get("shape"), "shape", where),
        _sizes(meta.get("chunks"), "chunks", where),
        find_decoder(meta.get("compressor"), where),
    )


def _sizes(value: object, key: str, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 < n < 1 << 40 for n in value):
        raise NemotronError(
            f"{key} is {value!r}"[:100] + ", not a list of positive integers", where=where
        )
    return tuple(value)
