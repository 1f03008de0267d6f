"""Compressed zarr chunks, decoded once each and never beyond their expected size."""

from __future__ import annotations

import bz2
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from nemotron_convert.source.archive import Bytes, Member, refuse_pointer
from nemotron_core.errors import NemotronError

CHUNK_LIMIT = (2 << 30) - 1
"""Largest size in bytes of a decoded chunk, which is held in memory; it is Blosc's own limit."""

Decoder = Callable[[bytes, int], Any]
"""Takes the compressed bytes and the expected size, returns the bytes or raises DECODE_ERRORS."""

DECODE_ERRORS = (ValueError, RuntimeError, OSError, EOFError, zlib.error, struct.error)
GZIP = 16 + zlib.MAX_WBITS
"""zlib's `wbits` for the gzip format."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def find_decoder(compressor: object, where: str) -> Decoder | None:
    """Return the decoder for a `.zarray`'s entry `compressor`, or `None` for uncompressed chunks.

    Raises `NemotronError` if the compressor is not known.
    """
    if compressor is None:
        return None
    name = compressor.get("id") if isinstance(compressor, dict) else None
    decoder = DECODERS.get(name) if isinstance(name, str) else None
    if decoder is None:
        raise NemotronError(
            f"compressor is {compressor!r}"[:200],
            where=where,
            remedy=f"only null and {', '.join(sorted(DECODERS))} are read",
        )
    return decoder


class _Chunk:
    """A decoded member. `data` is set by the thread that holds `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: memoryview | None = None


class ChunkCache:
    """Keeps the chunk that each thread read last, so at most one decoded chunk per thread.

    Threads that read the same chunk at the same time share it.
    """

    def __init__(self) -> None:
        self._chunks: WeakValueDictionary[str, _Chunk] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._latest = threading.local()

    def get(self, name: str, decode: Callable[[], memoryview]) -> memoryview:
        """Return the member `name` decoded; `decode` is called only if no thread has it."""
        with self._lock:
            chunk = self._chunks.get(name) or _Chunk()
            self._chunks[name] = self._latest.chunk = chunk
        with chunk.lock:
            if chunk.data is None:
                chunk.data = decode()
            return chunk.data


@dataclass(frozen=True)
class DecodedChunks:
    """The chunks of a compressed array, each presented as a member of `size` decoded bytes."""

    stored: Bytes
    decoder: Decoder
    size: int
    cache: ChunkCache

    @property
    def path(self) -> Path:
        return self.stored.path

    def read_into(self, member: Member, offset: int, buffer: memoryview) -> None:
        data = self.cache.get(member.name, lambda: self._decode(member))
        buffer[:] = data[offset : offset + len(buffer)]

    def _decode(self, member: Member) -> memoryview:
        where = f"{self.path}: {member.name}"
        refuse_pointer(self.stored, member)
        compressed = bytearray(member.size)
        self.stored.read_into(member, 0, memoryview(compressed))
        try:
            return memoryview(self.decoder(bytes(compressed), self.size)).cast("B")
        except DECODE_ERRORS as error:
            raise NemotronError(
                f"the chunk does not decode to its {self.size} bytes: {error}"[:300],
                where=where,
                remedy="copy the checkpoint again",
            ) from error


def max_compressed_size(size: int) -> int:
    """Return an upper bound of the compressed size of `size` bytes, for all compressors."""
    return size + size // 16 + 1024


def _from_stream(stream: Any, compressed: bytes, size: int) -> bytes:
    """Decompress with a decompressor object of `zlib` or `bz2`.

    It may produce one byte more than expected: enough to notice a chunk that is too large.
    """
    data: bytes = stream.decompress(compressed, size + 1)
    if len(data) != size or not stream.eof or stream.unused_data:
        raise ValueError("it has more bytes" if len(data) > size else "it ends elsewhere")
    return data


def _zlib(compressed: bytes, size: int) -> bytes:
    return _from_stream(zlib.decompressobj(), compressed, size)


def _gzip(compressed: bytes, size: int) -> bytes:
    return _from_stream(zlib.decompressobj(GZIP), compressed, size)


def _bz2(compressed: bytes, size: int) -> bytes:
    return _from_stream(bz2.BZ2Decompressor(), compressed, size)


# numcodecs is loaded by the first chunk, because few checkpoints are compressed.


def _blosc(compressed: bytes, size: int) -> Any:
    from numcodecs import blosc  # noqa: PLC0415

    _options, nbytes, _block, cbytes = struct.unpack_from("<4I", compressed)
    _check_header(nbytes, size)
    if cbytes != len(compressed):
        raise ValueError(f"its header says {cbytes} bytes, it has {len(compressed)}")
    return blosc.decompress(compressed, np.empty(size, np.uint8))


def _lz4(compressed: bytes, size: int) -> Any:
    from numcodecs import lz4  # noqa: PLC0415

    (nbytes,) = struct.unpack_from("<I", compressed)
    _check_header(nbytes, size)
    return lz4.decompress(compressed, np.empty(size, np.uint8))


def _zstd(compressed: bytes, size: int) -> Any:
    from numcodecs import zstd  # noqa: PLC0415

    if not compressed.startswith(ZSTD_MAGIC):
        raise ValueError("it is no Zstandard frame")
    _check_header(_zstd_content_size(compressed), size)
    return zstd.decompress(compressed, np.empty(size, np.uint8))


def _zstd_content_size(frame: bytes) -> int:
    """Return Frame_Content_Size of a frame's header (RFC 8878, section 3.1.1.1).

    Raises `ValueError` if the frame does not state its size.
    """
    (descriptor,) = struct.unpack_from("<B", frame, 4)
    size_flag, is_single_segment = descriptor >> 6, descriptor >> 5 & 1
    start = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    length = (is_single_segment, 2, 4, 8)[size_flag]
    field = frame[start : start + length]
    if not length or len(field) != length:
        raise ValueError("its frame does not say how long it is")
    return int.from_bytes(field, "little") + (256 if length == 2 else 0)


def _check_header(nbytes: int, size: int) -> None:
    """Raise `ValueError` if a header states another size than expected, before decoding."""
    if nbytes != size:
        raise ValueError(f"its header says {nbytes}")


DECODERS: dict[str, Decoder] = {
    "blosc": _blosc,
    "bz2": _bz2,
    "gzip": _gzip,
    "lz4": _lz4,
    "zlib": _zlib,
    "zstd": _zstd,
}
