"""A gzipped file decompressed once, into a file without a name."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from pathlib import Path
from typing import IO

from nemotron_core.errors import NemotronError
from nemotron_core.progress import byte_progress

COPY_BYTES = 4 << 20
"""Bytes that are decompressed at a time."""


def decompress(compressed: IO[bytes], path: Path, folder: Path) -> IO[bytes]:
    """Decompress a gzipped file into an unnamed file in `folder`, and check its CRC.

    `path` is the file's name for errors. Raises `NemotronError` if the file is damaged or the disk
    of `folder` is full.
    """
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the archive closes it
    try:
        with (
            gzip.GzipFile(fileobj=compressed) as stream,
            byte_progress("decompressing", path.stat().st_size) as report,
        ):
            done = 0
            while data := _read_compressed(stream, path):
                file.write(data)
                report(compressed.tell() - done)
                done = compressed.tell()
            file.seek(0)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise NemotronError(
                f"cannot write the decompressed archive: {error.strerror}",
                where=folder,
                remedy="make room, name another disk with -o, or unpack the archive yourself",
            ) from error
        raise
    return file


def _read_compressed(stream: gzip.GzipFile, path: Path) -> bytes:
    try:
        return stream.read(COPY_BYTES)
    except (EOFError, OSError, zlib.error) as error:
        raise NemotronError(
            f"cannot decompress: {error}", where=path, remedy="copy it again"
        ) from error
