"""The output of a batch: a file that grows by whole lines and is itself the record of what is done.

A plain file grows by one write per line. If a kill or a power failure leaves a part of a last line,
that part is cut off when the file is opened again. A `.gz` file grows by whole gzip members, each
with the lines of about one second; any gzip program reads them as one file. A torn last member is
cut off in the same way.

If the disk is full, the part that was written is cut off and an error is raised, so nothing that
was written before is lost. The file is made durable every `SYNC_SECONDS`: a kill of the process
loses nothing, a power failure at most the rows since then, and those are sent again.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from nemotron_core.errors import NemotronError
from nemotron_data.rows import digest

SYNC_SECONDS = 1.0
MEMBER_BYTES = 1 << 20
"""Bytes of text after which a gzip member is written, even before `SYNC_SECONDS` are over."""
READ_SIZE = 1 << 20
"""Bytes read at a time from a gzip file."""
GZIP_WINDOW_BITS = 31
"""Value of zlib's `wbits` for the gzip format with a window of 32 KiB."""
PARTIAL = ".partial-"
"""Prefix of the name under which a sorted file is written. It is no suffix, because the suffix
`.gz` must stay one."""


class ResultFile:
    """An output that is open for this process alone; a context manager.

    `load` must be called before anything is appended. `clock` returns seconds. Raises
    `NemotronError` if another process has the file open, or if the operating system refuses.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._gzipped = path.name.endswith(".gz")
        self._buffer = bytearray()
        self._synced_at = clock()
        try:
            self._descriptor = _open_locked(path)
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
        """Cut off a torn end, and return the digests of all custom_ids in the file.

        Raises `NemotronError` if a line is not a result, or if a custom_id is there twice.
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
        """Yield the custom_id and the line of each result, in the file's order."""
        for custom_id, line, _end in self._read():
            yield custom_id, line

    def sort(self, numbers: Mapping[int, int]) -> None:
        """Sort the results into the order of their rows.

        `numbers` maps the digest of a custom_id to the number of its row's line. The sorted file
        replaces this one when it is whole. Nothing but `close` may be called afterwards.
        """
        self.sync()
        positions: list[tuple[int, int, int]] = []
        partial = self.path.with_name(f"{PARTIAL}{self.path.name}")
        try:
            with tempfile.TemporaryFile(dir=self.path.parent) as spool:
                end = 0
                for custom_id, line in self.read():
                    positions.append((numbers[digest(custom_id)], end, len(line)))
                    end += spool.write(line)
                if positions == sorted(positions):
                    return
                partial.unlink(missing_ok=True)
                with ResultFile(partial) as sorted_file:
                    for _number, start, length in sorted(positions):
                        spool.seek(start)
                        sorted_file.append(spool.read(length))
            partial.replace(self.path)
        except OSError as error:
            raise self._failure(error) from error

    def _read(self) -> Iterator[tuple[str, bytes, int]]:
        with self.path.open("rb") as file:
            lines = _gzip_lines(file) if self._gzipped else _plain_lines(file)
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
        """Append one result. `line` ends with a newline."""
        if self._gzipped:
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


def _open_locked(path: Path) -> int:
    """Open and lock a file, and return its descriptor.

    The lock belongs to the open file, so it ends with the process, however that ends.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
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
        # Between the opening and the lock another process replaced the file: open the new one.
        os.close(descriptor)


def _plain_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield each line that ends with a newline, and the offset in bytes where it ends."""
    end = 0
    for line in file:
        end += len(line)
        if line.endswith(b"\n"):
            yield line, end


def _gzip_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield each line of a whole gzip member, and the offset in bytes where the member ends."""
    start = used = 0
    text = b""
    member = zlib.decompressobj(wbits=GZIP_WINDOW_BITS)
    while data := file.read(READ_SIZE):
        while data:
            try:
                text += member.decompress(data)
            except zlib.error as error:
                raise NemotronError(
                    f"what begins at byte {start} is not gzip, or damaged: {error}",
                    where=file.name,
                    remedy=f"restore it, or give up what follows: truncate -s {start}",
                ) from error
            used += len(data) - len(member.unused_data)
            data = member.unused_data
            if member.eof:
                start, used = start + used, 0
                for line in text.splitlines(keepends=True):
                    yield line, start
                text, member = b"", zlib.decompressobj(wbits=GZIP_WINDOW_BITS)
