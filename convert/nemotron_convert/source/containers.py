"""The containers that a `.nemo` can be, a folder or a (gzipped) tar, read without unpacking."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import threading
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from nemotron_convert.source.archive import (
    LFS_MAGIC,
    MEMBER_LIMIT,
    Archive,
    Index,
    Member,
    lfs_pointer,
    short_name,
)
from nemotron_core.errors import NemotronError

GZIP_MAGIC = b"\x1f\x8b"
DEPTH_LIMIT = 32
"""Largest number of folders inside each other."""
OPEN_FILES = 64
"""Largest number of files of a folder that are kept open."""
HEADER_LIMIT = 1 << 20
"""Largest size in bytes of the headers of one member of a tar: a name and a few attributes."""


def open_archive(path: Path) -> Archive:
    """Open the archive at `path`. Raises `NemotronError`, which says what it is, if it is none."""
    if path.is_dir():
        return FolderArchive(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait forever
            raise NemotronError("neither a file nor a folder", where=path)
        with path.open("rb") as file:
            magic = file.read(len(LFS_MAGIC))
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    if magic == LFS_MAGIC:
        raise lfs_pointer(path)
    return TarArchive(path, compressed=magic.startswith(GZIP_MAGIC))


class FolderArchive:
    """All files below a folder. Symbolic links are refused, because they can lead outside."""

    sequential = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        index = Index(path)
        for name, mode, size in _walk(path):
            index.count()
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise NemotronError(
                    f"{short_name(name)} is not a plain file",
                    where=path,
                    remedy="a .nemo folder holds only files",
                )
            index.add(Member(name, size, 0))
        self.members = index.members

    def read_into(self, member: Member, offset: int, buffer: memoryview) -> None:
        where = f"{self.path}: {member.name}"
        with self._lock:
            descriptor = os.dup(self._descriptor(member.name, where))
        try:
            _read_at(descriptor, offset, buffer, where)
        finally:
            os.close(descriptor)

    def _descriptor(self, name: str, where: str) -> int:
        if name not in self._descriptors:
            if len(self._descriptors) >= OPEN_FILES:
                self.close()
            try:
                # A link that was put there after the folder was listed is not followed.
                self._descriptors[name] = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW)
            except OSError as error:
                raise NemotronError(f"cannot read: {error.strerror}", where=where) from error
        return self._descriptors[name]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def _walk(top: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (name relative to `top`, mode, size) of each file and folder below `top`."""
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(top / folder) as entries:
                listing = [
                    (entry.name, entry.stat(follow_symlinks=False))
                    for entry in islice(entries, MEMBER_LIMIT + 1)
                ]
        except OSError as error:
            raise NemotronError(f"cannot read: {error.strerror}", where=top / folder) from error
        for basename, status in sorted(listing):
            name = folder + basename
            yield name, status.st_mode, status.st_size
            if stat.S_ISDIR(status.st_mode):
                if name.count("/") >= DEPTH_LIMIT:
                    raise NemotronError(
                        f"folders more than {DEPTH_LIMIT} deep: {short_name(name)}", where=top
                    )
                pending.append(name + "/")


class TarArchive:
    """The members of a tar, read in place; a gzipped tar is decompressed while it is read."""

    def __init__(self, path: Path, *, compressed: bool) -> None:
        self.path = path
        self.sequential = compressed
        self._lock = threading.Lock()
        self._file = path.open("rb")
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
        file_size = None if self.sequential else self.path.stat().st_size
        try:
            for info in _tar_infos(self._stream, self.path):
                index.count()
                if member := self._member(info):
                    index.add(member)
                    _check_end(member, file_size, self.path)
        except (
            *(tarfile.TarError, EOFError, OSError, zlib.error),
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
            _read_at(self._file.fileno(), member.offset + offset, buffer, where)
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


def _read_at(descriptor: int, offset: int, buffer: memoryview, where: str) -> None:
    """Fill `buffer` from `offset` of a file on, or raise `NemotronError`."""
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise NemotronError(f"cannot read: {error.strerror}", where=where) from error
        if count == 0:
            raise NemotronError("the file ends early", where=where, remedy="copy it again")
        done += count
