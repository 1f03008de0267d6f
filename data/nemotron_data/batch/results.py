"""The output of a batch: a file that grows by whole lines and is itself the record of what is done.

A plain file grows by one write per line. If a kill or a power failure leaves a part of a last line,
that part is cut off when the file is opened again. A compressed file grows by whole gzip members or
zstandard frames, each with the lines of about one second; any program for the format reads them as
one file. A torn last member is cut off in the same way.

If the disk is full, the part that was written is cut off and an error is raised, so nothing that
was written before is lost. The file is made durable every `SYNC_SECONDS`: a kill of the process
loses nothing, a power failure at most the rows since then, and those are sent again.
"""

from __future__ import annotations

import binascii
import json
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from nemotron_core.errors import NemotronError
from nemotron_core.files import sync
from nemotron_data.batch.codec import CODECS
from nemotron_data.batch.lock import open_locked
from nemotron_data.batch.result_line import CUSTOM_ID_START, KEY_END, START

SYNC_SECONDS = 1.0
MEMBER_BYTES = 1 << 20
"""Bytes of text after which a compressed member is written, even before `SYNC_SECONDS` are over."""
WRITE_SIZE = 1 << 20
"""Bytes that are written at a time when a whole file is written anew."""
PARTIAL = ".partial-"
"""Prefix of the name under which a file is written anew. It is no suffix, because the suffix of the
compression must stay one."""
KEY = np.dtype("S16")
"""Type of the keys of results in an array."""
REPORT_LINES = 20_000
"""A reader of many lines reports each time after so many."""
Keys = npt.NDArray[np.bytes_]


def ignore(_count: int) -> None:
    """Report progress to nobody."""


class ResultFile:
    """An output that is open for this process alone; a context manager.

    `load` must be called before anything is appended. `clock` returns seconds. Raises
    `NemotronError` if another process has the file open, or if the operating system refuses.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        codec = CODECS.get(path.suffix)
        self._codec = None if codec is None else codec()
        self._buffer = bytearray()
        self._synced_at = clock()
        self._is_new = not path.exists()
        try:
            self._descriptor = open_locked(path)
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror or error}", where=path) from error
        self._end = os.fstat(self._descriptor).st_size

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_error: object) -> None:
        """Close the file. A file that this object made goes again if an error left it empty."""
        if error_type is not None and self._is_new and self.is_empty and not self._buffer:
            with suppress(OSError):
                self.path.unlink()
        self.close()

    @property
    def is_empty(self) -> bool:
        return self._end == 0

    def load(self, report: Callable[[int], None] = ignore) -> Keys:
        """Cut off a torn end, and return the keys of all results in the file's order.

        `report` is called with the number of lines read so far. Raises `NemotronError` if a line
        is not a result, or if a row is there twice.
        """
        digits = bytearray()
        end = 0
        for number, (line, end) in enumerate(self._lines(), 1):  # noqa: B007  # the last end counts
            digits += _digits(line, number, self.path)
            if number % REPORT_LINES == 0:
                report(number)
        keys = self._keys(digits)
        del digits
        ordered = np.sort(keys)
        twice = ordered[:-1][ordered[1:] == ordered[:-1]]
        if len(twice):
            custom_id = next(self._custom_ids(twice[:1]))
            raise NemotronError(
                f"custom_id {custom_id!r} is there twice",
                where=self.path,
                remedy="remove one of the two lines",
            )
        if end < self._end:
            os.ftruncate(self._descriptor, end)
            self._end = end
        return keys

    def custom_ids(self, keys: Keys) -> list[str]:
        """Return the custom_ids of the results with these keys."""
        return list(self._custom_ids(keys))

    def lines(self) -> Iterator[bytes]:
        """Yield the line of each result, in the file's order."""
        return (line for line, _end in self._lines())

    def sort(self, positions: Callable[[Keys], npt.NDArray[np.int64]]) -> None:
        """Sort the results by the positions of their keys.

        The sorted file replaces this one when it is whole. A compressed file is decompressed into a
        temporary file beside it first.
        """
        self.sync()
        digits, ends, end = bytearray(), array("q"), 0
        try:
            with self._sortable() as file:
                for number, line in enumerate(file, 1):
                    digits += _digits(line, number, self.path)
                    end += len(line)
                    ends.append(end)
                order = np.argsort(positions(self._keys(digits)), kind="stable")
                del digits
                if (order[1:] > order[:-1]).all():
                    return
                self._rewrite(_pieces(file.fileno(), np.frombuffer(ends, np.int64), order))
        except OSError as error:
            raise self._failure(error) from error

    @contextmanager
    def _sortable(self) -> Iterator[BinaryIO]:
        """Open a file with the lines as they are, decompressed."""
        if self._codec is None:
            with self.path.open("rb") as file:
                yield file
            return
        with tempfile.TemporaryFile(dir=self.path.parent) as spool:
            spool.writelines(self.lines())
            spool.flush()
            spool.seek(0)
            yield cast("BinaryIO", spool)

    def move(self, keys: Keys, target: Path) -> None:
        """Move the results with these keys to the end of another file of lines.

        They are in the other file before this one is written anew, in one step.
        """
        moved = _digits_of(keys)
        try:
            with target.open("ab") as side:
                side.writelines(
                    line for line in self.lines() if line[len(START) : KEY_END] in moved
                )
                side.flush()
                os.fsync(side.fileno())
            self._rewrite(line for line in self.lines() if line[len(START) : KEY_END] not in moved)
        except OSError as error:
            raise self._failure(error) from error

    def _rewrite(self, lines: Iterable[bytes]) -> None:
        """Replace the content by other lines in one step."""
        partial = self.path.with_name(f"{PARTIAL}{self.path.name}")
        partial.unlink(missing_ok=True)
        other = ResultFile(partial, self._clock)
        try:
            piece: list[bytes] = []
            size = 0
            for line in lines:
                piece.append(line)
                size += len(line)
                if size >= WRITE_SIZE:
                    other.append(b"".join(piece))
                    piece, size = [], 0
            other.append(b"".join(piece))
            other.sync()
            partial.replace(self.path)
            sync(self.path.parent)
        except BaseException:
            os.close(other._descriptor)
            partial.unlink(missing_ok=True)
            raise
        os.close(self._descriptor)
        self._descriptor, self._end = other._descriptor, other._end

    def _lines(self) -> Iterator[tuple[bytes, int]]:
        return _plain_lines(self.path) if self._codec is None else self._codec.lines(self.path)

    def _keys(self, digits: bytearray) -> Keys:
        try:
            return np.frombuffer(binascii.unhexlify(digits), KEY)
        except binascii.Error as error:
            raise NemotronError("an id is not that of a result", where=self.path) from error

    def _custom_ids(self, keys: Keys) -> Iterator[str]:
        """Yield the custom_ids of the results with these keys, in the file's order."""
        wanted = _digits_of(keys)
        for line in self.lines():
            if line[len(START) : KEY_END] in wanted:
                yield json.loads(line)["custom_id"]

    def append(self, line: bytes) -> None:
        """Append one result. `line` ends with a newline."""
        if self._codec is not None:
            self._buffer += line
            if len(self._buffer) >= MEMBER_BYTES:
                self._flush()
        else:
            self._write(line)
        self.tick()

    def tick(self) -> None:
        """Make durable what was appended, if `SYNC_SECONDS` are over. To be called regularly."""
        if self._clock() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Make durable what was appended."""
        self._flush()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failure(error) from error
        self._synced_at = self._clock()

    def close(self) -> None:
        """Make durable what was appended, and release the file.

        After a failed write, what could not be written is left out.
        """
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def _flush(self) -> None:
        if self._buffer and self._codec is not None:
            data = self._codec.compress(bytes(self._buffer))
            self._buffer.clear()
            self._write(data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise self._failure(error) from error
        self._end += len(data)

    def _failure(self, error: OSError) -> NemotronError:
        return NemotronError(
            f"cannot write: {error.strerror or error}",
            where=self.path,
            remedy="nothing written is lost: make room and run the same command again",
        )


def _plain_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield each line that ends with a newline, and the offset in bytes where it ends."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            if line[-1:] == b"\n":
                end += len(line)
                yield line, end


def _digits(line: bytes, number: int, path: Path) -> bytes:
    """Return the hexadecimal digits of a result's key."""
    if (
        line[: len(START)] != START
        or line[KEY_END : KEY_END + len(CUSTOM_ID_START)] != CUSTOM_ID_START
        or line[-2:] != b"}\n"
    ):
        raise NemotronError(
            f"line {number} is not a result of a batch",
            where=path,
            remedy="name another output, or remove what does not belong there",
        )
    return line[len(START) : KEY_END]


def _digits_of(keys: Keys) -> set[bytes]:
    digits = binascii.hexlify(keys.tobytes())
    return {digits[start : start + 32] for start in range(0, len(digits), 32)}


def _pieces(
    descriptor: int, ends: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> Iterator[bytes]:
    """Yield the lines of a file, of which each ends at one of `ends`, in another order."""
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    for index in order:
        yield os.pread(descriptor, int(ends[index] - starts[index]), int(starts[index]))
