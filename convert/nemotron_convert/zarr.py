"""Arrays in zarr v2 as Megatron writes them: raw little-endian BF16 chunks beside a `.zarray`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from nemotron_convert.archive import Archive, Member, read_bytes
from nemotron_convert.arrays import BF16_BYTES, Chunk, StoredArray, as_matrices
from nemotron_convert.codec import DECODERS, OVERHEAD, Codec
from nemotron_convert.errors import NemotronError

BF16_NAMES = ("bfloat16", "<V2")
METADATA_NAME = ".zarray"
METADATA_LIMIT = 1 << 16


def open_zarr(archive: Archive, weights: str, name: str, *, stacked: bool) -> StoredArray:
    """The array in the folder `weights` + `name`.

    NemotronError if its metadata makes no sense or a chunk's file is missing or of another size.
    `stacked`: axis 0 counts layers.
    """
    folder = f"{weights}{name}/"
    where = f"{archive.path}: {folder}{METADATA_NAME}"
    if folder + METADATA_NAME not in archive.members:
        raise NemotronError(f"tensor {name} is missing", where=archive.path)
    shape, chunk_shape, compressor = _read_metadata(archive, folder, where)
    if len(shape) != len(chunk_shape) or len(shape) not in ((2, 3) if stacked else (1, 2)):
        raise NemotronError(f"shape {list(shape)} with chunks {list(chunk_shape)}", where=where)
    size = math.prod(chunk_shape) * BF16_BYTES
    codec = Codec(archive, compressor, size) if compressor else None
    chunks = tuple(_chunks(archive, folder, shape, chunk_shape, stacked=stacked, packed=codec))
    _check_nothing_else(archive, folder, {chunk.member.name for chunk in chunks})
    return StoredArray(archive, name, shape, chunk_shape, chunks, codec)


def _read_metadata(
    archive: Archive, folder: str, where: str
) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """Shape, shape of a chunk, and the compressor's name or nothing."""
    try:
        meta = json.loads(read_bytes(archive, folder + METADATA_NAME, limit=METADATA_LIMIT))
    except (ValueError, RecursionError) as error:
        raise NemotronError(f"not JSON: {error}", where=where) from error
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
                f"{key} is {meta.get(key)!r}", where=where, remedy=f"only {allowed[0]!r} is read"
            )
    compressor = meta.get("compressor") or {"id": ""}
    name = compressor.get("id") if isinstance(compressor, dict) else None
    if not isinstance(name, str) or name not in ("", *DECODERS):
        raise NemotronError(
            f"compressor is {str(compressor)[:80]!r}",
            where=where,
            remedy=f"one of {', '.join(DECODERS)} is read",
        )
    shape = _sizes(meta.get("shape"), "shape", where)
    return shape, _sizes(meta.get("chunks"), "chunks", where), name


def _sizes(value: object, key: str, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 < n < 1 << 40 for n in value):
        raise NemotronError(f"{key} is {value!r}, not a list of positive integers", where=where)
    return tuple(value)


def _chunks(
    archive: Archive,
    folder: str,
    shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    *,
    stacked: bool,
    packed: Codec | None,
) -> Iterator[Chunk]:
    """The grid in order; the files at the array's far edges are stored at full size."""
    layers, rows, columns = as_matrices(shape, stacked=stacked, missing=1)
    chunk_layers, chunk_rows, chunk_columns = as_matrices(chunk_shape, stacked=stacked, missing=1)
    size = math.prod(chunk_shape) * BF16_BYTES
    pitch = chunk_columns * BF16_BYTES
    axes = (stacked, len(shape) == (3 if stacked else 2), True)
    for layer in range(layers):
        for row in range(0, rows, chunk_rows):
            for column in range(0, columns, chunk_columns):
                index = (layer // chunk_layers, row // chunk_rows, column // chunk_columns)
                named = (str(i) for i, axis in zip(index, axes, strict=True) if axis)
                yield Chunk(
                    member=_file(archive, folder + ".".join(named), size, packed=bool(packed)),
                    offset=(layer % chunk_layers) * chunk_rows * pitch,
                    pitch=pitch,
                    layer=layer,
                    row=row,
                    rows=min(chunk_rows, rows - row),
                    column=column,
                    columns=min(chunk_columns, columns - column),
                )


def _check_nothing_else(archive: Archive, folder: str, known: set[str]) -> None:
    """A chunk outside the grid means that the metadata is of another array."""
    for name in archive.members:
        if name.startswith(folder) and name not in known:
            if name.removeprefix(folder) in (METADATA_NAME, ".zattrs"):
                continue
            raise NemotronError(
                f"{name} is no chunk of the array's grid",
                where=archive.path,
                remedy="copy the checkpoint again",
            )


def _file(archive: Archive, name: str, size: int, *, packed: bool) -> Member:
    member = archive.members.get(name)
    if member is None:
        raise NemotronError(
            f"chunk {name} is missing, and its fill value is null",
            where=archive.path,
            remedy="copy the checkpoint again",
        )
    if packed and member.size <= size + OVERHEAD:
        return member
    if member.size != size:
        raise NemotronError(
            f"chunk {name} has {member.size} bytes, its .zarray says {size}",
            where=archive.path,
            remedy="copy the checkpoint again",
        )
    return member
