"""Compressed outputs, which grow by whole gzip members or zstandard frames."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nemotron_core.errors import NemotronError
from nemotron_data.extra import require

READ_SIZE = 1 << 20
"""Bytes read at a time from a compressed file."""
GZIP_WINDOW_BITS = 31
"""Value of zlib's `wbits` for the gzip format with a window of 32 KiB."""
ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Codec:
    """A compression whose files may be concatenated."""

    name: str
    compress: Callable[[bytes | bytearray], bytes]
    """Returns one member with the data."""
    decompressor: Callable[[], Any]
    """Returns an object like zlib's `decompressobj()`, for one member."""
    error: type[Exception]
    """What a decompressor raises."""

    def lines(self, path: Path) -> Iterator[tuple[bytes, int]]:
        """Yield each line of a whole member, and the offset in bytes where the member ends."""
        with path.open("rb") as file:
            yield from self._lines(file, path)

    def _lines(self, file: BinaryIO, path: Path) -> Iterator[tuple[bytes, int]]:
        start = used = 0
        text = b""
        member = self.decompressor()
        while data := file.read(READ_SIZE):
            while data:
                try:
                    text += member.decompress(data)
                except self.error as error:
                    raise NemotronError(
                        f"what begins at byte {start} is not {self.name}, or damaged: {error}",
                        where=path,
                        remedy=f"restore it, or give up what follows: truncate -s {start}",
                    ) from error
                if not member.eof:
                    used += len(data)
                    break
                used += len(data) - len(member.unused_data)
                data = member.unused_data
                start, used = start + used, 0
                for line in io.BytesIO(text):
                    yield line, start
                text, member = b"", self.decompressor()


def _gzip() -> Codec:
    return Codec(
        "gzip",
        lambda data: gzip.compress(data, compresslevel=6, mtime=0),
        lambda: zlib.decompressobj(wbits=GZIP_WINDOW_BITS),
        zlib.error,
    )


def _zstd() -> Codec:
    library: Any = require("zstandard")
    return Codec(
        "zstandard",
        lambda data: library.ZstdCompressor(ZSTD_LEVEL, write_checksum=True).compress(data),
        lambda: library.ZstdDecompressor().decompressobj(),
        library.ZstdError,
    )


CODECS = {".gz": _gzip, ".zst": _zstd}
"""Codecs by the suffix of an output."""
