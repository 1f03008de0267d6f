"""Compressed files, recognised by their first bytes and not by their names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any, cast

from nemotron_data.extra import require

READ_SIZE = 1 << 18
"""Bytes read at a time from a zstandard file."""
LONGEST_MAGIC = 6
"""Bytes of the longest entry in `OPENERS`."""


class ZstdFile(io.RawIOBase):
    """Reads the frames of a zstandard file, and raises `EOFError` if the last one is cut off."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._library: Any = require("zstandard")
        self._frame = self._new_frame()
        self._inside = False
        """Whether the frame has begun."""
        self._data = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        while not self._data:
            if self._inside and self._frame.eof:
                rest, self._frame, self._inside = self._frame.unused_data, self._new_frame(), False
            else:
                rest = b""
            data = rest or self._file.read(READ_SIZE)
            if not data:
                if self._inside:
                    raise EOFError("the last frame is cut off")
                return 0
            try:
                self._data = self._frame.decompress(data)
            except self._library.ZstdError as error:
                raise OSError(f"not zstandard, or damaged: {error}") from error
            self._inside = True
        size = min(len(view), len(self._data))
        view[:size] = self._data[:size]
        self._data = self._data[size:]
        return size

    def _new_frame(self) -> Any:
        return self._library.ZstdDecompressor().decompressobj()


def _zstd(file: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", io.BufferedReader(ZstdFile(file), READ_SIZE))


OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\xfd7zXZ\0": lzma.open,
    b"BZh": bz2.open,
}
"""A function that opens a compressed file, by the first bytes of the file."""
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a damaged file raises."""


def decompressed(file: IO[bytes]) -> IO[bytes]:
    """Return a file with the content of `file`, which stands at its beginning and can seek.

    A file that is not compressed is returned itself. Reading raises one of `READ_ERRORS`.
    """
    start = file.read(LONGEST_MAGIC)
    file.seek(0)
    for magic, opener in OPENERS.items():
        if start.startswith(magic):
            return cast("IO[bytes]", opener(file))
    return file
