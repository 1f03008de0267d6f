"""The input of a batch: one file, many, or a stream, as rows that can be read several times."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from nemotron_core.errors import NemotronError
from nemotron_data.options import Format
from nemotron_data.rows.compression import READ_ERRORS, decompressed
from nemotron_data.rows.formats import (
    COMPRESSED_SUFFIXES,
    READERS,
    SNIFF_BYTES,
    SUFFIXES,
    Record,
    recognise,
)

STREAM = "-"
"""Stands for standard input or output in place of a path."""


@dataclass(frozen=True)
class File:
    """One file of the input. A spool is a copy of a stream, in a file without a name."""

    name: str
    spool: IO[bytes] | None = None

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file at its beginning, decompressed."""
        if self.spool is not None:
            self.spool.seek(0)
            yield decompressed(self.spool)
        else:
            with Path(self.name).open("rb") as file, decompressed(file) as content:
                yield content

    def recognise(self) -> Format:
        """Return the file's format."""
        with self.open() as content:
            return recognise(content.read(SNIFF_BYTES), self.name)


class Source:
    """An input: a path, a folder, a pattern of paths, or a stream.

    A stream (`-`, a FIFO, `/dev/stdin`) is first copied to its end into a temporary file. Each
    file's format is recognised by its content, and by its name where several fit, unless it is
    given. Raises `NemotronError` if the input cannot be read.
    """

    def __init__(self, path: str, input_format: Format | None = None) -> None:
        self.name = "standard input" if path == STREAM else path
        self.files = _files(path)
        self._format = input_format

    def records(self) -> Iterator[tuple[File, int, Record]]:
        """Yield each record with its file and its number in it.

        Raises `NemotronError` if a file cannot be read, or if it is not of its format.
        """
        for file in self.files:
            try:
                reader = READERS[self._format or file.recognise()]
                with file.open() as content:
                    for number, record in reader(content):
                        yield file, number, record
            except (*READ_ERRORS, ValueError) as error:
                reason = (isinstance(error, OSError) and error.strerror) or error
                raise NemotronError(f"cannot read: {reason}", where=file.name) from error

    def close(self) -> None:
        for file in self.files:
            if file.spool is not None:
                file.spool.close()


def _files(path: str) -> list[File]:
    if path == STREAM:
        return [File("standard input", _spool(sys.stdin.buffer))]
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  # the path may be a pattern
    except OSError as error:
        paths = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  # the pattern may be absolute
        files = [File(found) for found in paths if Path(found).is_file()]
        if not files:
            reason = "the pattern fits only folders" if paths else f"cannot read: {error.strerror}"
            raise NemotronError(reason, where=path, remedy="name a file or folder") from error
        return files
    if stat.S_ISDIR(mode):
        return [File(str(found)) for found in _data_files(Path(path))]
    if stat.S_ISREG(mode):
        return [File(path)]
    try:
        with Path(path).open("rb") as stream:
            return [File(path, _spool(stream))]
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error


def _data_files(folder: Path) -> list[Path]:
    """Return the files of a Hugging Face dataset, or all files of known formats in a folder."""
    if (folder / "dataset_dict.json").exists():
        raise NemotronError(
            "the dataset has several splits", where=folder, remedy="name the folder of one of them"
        )
    if (folder / "state.json").exists():  # made by `save_to_disk`, which also leaves JSON there
        files = sorted(folder.glob("*.arrow"))
    else:
        files = sorted(
            path for path in folder.iterdir() if path.is_file() and _plain_suffix(path) in SUFFIXES
        )
    if not files:
        raise NemotronError("the folder holds no file of rows", where=folder)
    return files


def _plain_suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in COMPRESSED_SUFFIXES else path).suffix


def _spool(stream: IO[bytes]) -> IO[bytes]:
    spool = cast("IO[bytes]", tempfile.TemporaryFile())  # noqa: SIM115  # closed with the source
    try:
        shutil.copyfileobj(stream, spool)
    except BaseException:
        spool.close()
        raise
    return spool
