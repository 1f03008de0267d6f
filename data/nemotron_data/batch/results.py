"""The output: a file that only grows by whole lines, and says itself which rows are done.

A plain file grows by one write for each line. What a kill or a power cut leaves of a last line is
cut off when the file is opened again. A `.gz` grows by whole members, one for the lines of about a
second, which any gzip reads as one file; a torn last member is cut off the same way.

A full disk is told as an error after the torn rest was cut off, so nothing written is lost. Every
`SYNC_SECONDS` the file is made durable: a kill of the process loses nothing, a power cut at most
the rows since then, and those are asked again.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from nemotron_core.errors import NemotronError
from nemotron_data.rows import digest

SYNC_SECONDS = 1.0
MEMBER_BYTES = 1 << 20
"""Of text; a member is written when it has so much, or has waited for `SYNC_SECONDS`."""
CHUNK = 1 << 20
GZIP = 31
"""Zlib's name for a window of 32 KiB in gzip's own wrapping."""
PARTIAL = ".partial-"
"""In front of the name, so that a suffix `.gz` stays one."""


class ResultFile:
    """An output that is open for this process alone; a context manager.

    NemotronError if another process has it, or if the operating system refuses. `load` must be
    called before anything is appended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._gzipped = path.name.endswith(".gz")
        self._buffer = bytearray()
        self._synced = time.monotonic()
        try:
            self._descriptor = _open_alone(path)
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror or error}", where=path) from error
        self._end = os.fstat(self._descriptor).st_size

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def is_empty(self) -> bool:
        return self._end == 0

    def load(self) -> set[int]:
        """The digests of all ids in the file, whose torn end is cut off.

        NemotronError if something in it is not a result, or an id is there twice.
        """
        ids: set[int] = set()
        end = 0
        for count, (custom_id, _line, line_end) in enumerate(self._read(), 1):
            ids.add(digest(custom_id))
            end = line_end
            if len(ids) < count:
                raise NemotronError(
                    f"custom_id {custom_id!r} is there twice",
                    where=self.path,
                    remedy="remove one of the two lines",
                )
        if end < self._end:
            os.ftruncate(self._descriptor, end)
            self._end = end
        return ids

    def read(self) -> Iterator[tuple[str, bytes]]:
        """The custom_id and the line of each result, in the file's order."""
        for custom_id, line, _end in self._read():
            yield custom_id, line

    def sort(self, numbers: Mapping[int, int]) -> None:
        """Bring the results into the order of their rows, whose line `numbers` has by digest.

        The sorted file replaces this one when it is whole. Call nothing but `close` afterwards.
        """
        self.sync()
        places: list[tuple[int, int, int]] = []
        partial = self.path.with_name(f"{PARTIAL}{self.path.name}")
        try:
            with tempfile.TemporaryFile(dir=self.path.parent) as spool:
                end = 0
                for custom_id, line in self.read():
                    places.append((numbers[digest(custom_id)], end, len(line)))
                    end += spool.write(line)
                if places == sorted(places):
                    return
                partial.unlink(missing_ok=True)
                with ResultFile(partial) as ordered:
                    for _number, start, length in sorted(places):
                        spool.seek(start)
                        ordered.append(spool.read(length))
            partial.replace(self.path)
        except OSError as error:
            raise self._failure(error) from error

    def _read(self) -> Iterator[tuple[str, bytes, int]]:
        with self.path.open("rb") as file:
            lines = _members(file) if self._gzipped else _whole(file)
            for number, (line, end) in enumerate(lines, 1):
                try:
                    custom_id = json.loads(line)["custom_id"]
                    custom_id.encode()
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise NemotronError(
                        f"line {number}, which ends at byte {end}, is not a result of a batch",
                        where=self.path,
                        remedy="name another output, or remove what does not belong there",
                    ) from error
                yield custom_id, line, end

    def append(self, line: bytes) -> None:
        """Add one result; `line` ends with a newline."""
        if self._gzipped:
            self._buffer += line
            if len(self._buffer) >= MEMBER_BYTES:
                self._flush()
        else:
            self._write(line)
        self.tick()

    def tick(self) -> None:
        """Make durable what was added, if it is time to; call it now and then."""
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Make durable what was added."""
        self._flush()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failure(error) from error
        self._synced = time.monotonic()

    def close(self) -> None:
        """Also after a failed write: what could not be written then is left out."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def _flush(self) -> None:
        if self._buffer:
            data = gzip.compress(self._buffer, compresslevel=6, mtime=0)
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


def _open_alone(path: Path) -> int:
    """The lock belongs to the open file, so it ends with the process, however that ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = path.stat()
            if os.path.samestat(os.fstat(descriptor), found):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            os.close(descriptor)
            raise NemotronError(
                "another process is writing it", where=path, remedy="wait for that one or end it"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # sorted or replaced in between: that was the old file


def _whole(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each line that has its newline, and the byte it ends at."""
    end = 0
    for line in file:
        end += len(line)
        if line.endswith(b"\n"):
            yield line, end


def _members(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The same of a gzip file, where a line counts when its member is whole."""
    begin = used = 0
    text = b""
    member = zlib.decompressobj(wbits=GZIP)
    while data := file.read(CHUNK):
        while data:
            try:
                text += member.decompress(data)
            except zlib.error as error:
                raise NemotronError(
                    f"what begins at byte {begin} is not gzip, or damaged: {error}",
                    where=file.name,
                    remedy=f"restore it, or give up what follows: truncate -s {begin}",
                ) from error
            used += len(data) - len(member.unused_data)
            data = member.unused_data
            if member.eof:
                begin, used = begin + used, 0
                for line in text.splitlines(keepends=True):
                    yield line, begin
                text, member = b"", zlib.decompressobj(wbits=GZIP)
