"""A `.nemo` as it is downloaded, a tar or a gzipped tar, read without unpacking."""

from __future__ import annotations

import gzip
import os
import tarfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from nemotron_convert.source.archive import FileStatus, Index, Member, short_name
from nemotron_convert.source.decompression import decompress
from nemotron_convert.source.opened_file import OpenedFile, read_at
from nemotron_core.errors import NemotronError

REST_BYTES = 1 << 20
"""Number of bytes read at a time of what follows the members of a tar."""
HEADER_LIMIT = 1 << 20
"""Largest size in bytes of the headers of one member of a tar: a name and a few attributes."""


class TarArchive:
    """The members of a tar, read in place; a gzipped tar is decompressed while it is read."""

    def __init__(self, path: Path, *, compressed: bool, scratch: Path | None = None) -> None:
        """With `scratch`, a folder, a compressed tar is decompressed there first."""
        self.path = path
        self._lock = threading.Lock()
        self._file: IO[bytes] = path.open("rb")
        self._opened = FileStatus.of(os.fstat(self._file.fileno()))
        if compressed and scratch is not None:
            with self._file as compressed_file:
                self._file = decompress(compressed_file, path, scratch)
            compressed = False
        self.sequential = compressed
        self._stream: IO[bytes] | gzip.GzipFile = self._file
        try:
            if compressed:
                self._stream = gzip.GzipFile(fileobj=self._file)
            self.members = self._index()
        except BaseException:
            self.close()
            raise

    def _index(self) -> dict[str, Member]:
        index = Index(self.path)
        file_size = None if self.sequential else os.fstat(self._file.fileno()).st_size
        try:
            for info in _tar_infos(self._stream, self.path):
                index.count()
                if member := self._member(info):
                    index.add(member)
                    _check_end(member, file_size, self.path)
            # Up to its last byte, because a gzip's checksum stands at its end.
            _check_rest(self._stream, self.path)
        except (gzip.BadGzipFile, zlib.error) as error:
            raise NemotronError(
                f"the gzip is damaged: {error}", where=self.path, remedy="copy it again"
            ) from error
        except (
            *(tarfile.TarError, EOFError, OSError),
            *(ValueError, ArithmeticError, LookupError, RecursionError),  # forged header fields
        ) as error:
            raise NemotronError(
                f"not a .nemo: neither a folder nor a whole tar ({error})"[:300],
                where=self.path,
                remedy="name the .nemo file or the folder it was unpacked to",
            ) from error
        if not index.members:
            raise NemotronError("the tar is empty", where=self.path)
        return index.members

    def _member(self, info: tarfile.TarInfo) -> Member | None:
        """Return the member that a header describes, or `None` for a folder.

        Raises `NemotronError` if it is not a plain file or points outside the archive.
        """
        name = PurePosixPath(info.name)
        subject = f"member {short_name(info.name)}"
        if info.size < 0:
            raise NemotronError(f"{subject} has a size of {info.size}", where=self.path)
        if name.is_absolute() or ".." in name.parts:
            raise NemotronError(f"{subject} points outside the archive", where=self.path)
        if info.isdir():
            return None
        if not info.isreg() or info.issparse():
            raise NemotronError(
                f"{subject} is not a plain file (links, devices and sparse files have no place in "
                "a checkpoint)",
                where=self.path,
            )
        return Member(str(name), info.size, info.offset_data)

    def read_into(self, member: Member, offset: int, buffer: memoryview) -> None:
        where = f"{self.path}: {member.name}"
        if not self.sequential:
            read_at(self._file.fileno(), member.offset + offset, buffer, where)
            return
        with self._lock:
            try:
                self._stream.seek(member.offset + offset)
                data = self._stream.read(len(buffer))
            except (EOFError, OSError, zlib.error) as error:
                raise NemotronError(f"cannot decompress: {error}", where=where) from error
            if len(data) != len(buffer):
                raise NemotronError("the archive ends early", where=where, remedy="copy it again")
            buffer[:] = data

    def drop_cached(self, member: Member) -> None:
        start, size = (0, 0) if self.sequential else (member.offset, member.size)
        os.posix_fadvise(self._file.fileno(), start, size, os.POSIX_FADV_DONTNEED)

    def modified(self, _name: str) -> int:
        return self._opened.modified

    def changed(self, _names: Iterable[str]) -> list[str]:
        return (
            [self.path.name] if OpenedFile(self.path.resolve(), self._opened).is_changed() else []
        )

    def close(self) -> None:
        if self._stream is not self._file:
            self._stream.close()
        self._file.close()


def _tar_infos(stream: Any, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar one by one, in bounded memory."""
    headers: Any = _LimitedHeaders(stream, path)  # mode "r:" only reads, seeks and tells
    with tarfile.open(fileobj=headers, mode="r:") as tar:
        parsed: list[tarfile.TarInfo] = vars(tar)["members"]
        while (info := tar.next()) is not None:
            parsed.clear()  # tarfile keeps every header that it has read
            headers.bytes_left = HEADER_LIMIT
            yield info


def _check_rest(stream: Any, path: Path) -> None:
    """Read on to the end of the file.

    Raises `NemotronError` if anything but zeros follows the tar, and one of the exceptions of
    `gzip` if a checksum does not match.
    """
    while data := stream.read(REST_BYTES):
        if data.count(0) != len(data):
            raise NemotronError(
                "something follows the end of the tar",
                where=path,
                remedy="unpack each tar if several were put together, or copy it again",
            )


def _check_end(member: Member, file_size: int | None, path: Path) -> None:
    """Raise `NemotronError` if the member ends after the file; a gzip's size is not known."""
    if file_size is not None and member.offset + member.size > file_size:
        raise NemotronError(
            f"the tar is cut short: {member.name} should reach byte "
            f"{member.offset + member.size}, the file has {file_size}",
            where=path,
            remedy="copy it again",
        )


class _LimitedHeaders:
    """A tar as a file for `tarfile`, with at most HEADER_LIMIT bytes of headers per member.

    `tarfile` itself accepts a header of any size, and any number of them before a member.
    """

    def __init__(self, stream: Any, path: Path) -> None:
        self._path = path
        self._stream = stream
        self.bytes_left = HEADER_LIMIT
        self.seek = stream.seek
        self.tell = stream.tell
        self.close = stream.close

    def read(self, size: int) -> bytes:
        self.bytes_left -= size
        if size < 0 or self.bytes_left < 0:
            raise NemotronError(
                f"a member's header in the tar has more than {HEADER_LIMIT} bytes", where=self._path
            )
        data: bytes = self._stream.read(size)
        return data
