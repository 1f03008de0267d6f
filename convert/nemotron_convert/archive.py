"""A `.nemo` as named byte ranges: a folder, a tar or a gzipped tar, none of them unpacked."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import threading
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Protocol

from nemotron_convert.errors import NemotronError

GZIP_MAGIC = b"\x1f\x8b"
LFS_MAGIC = b"version https://git-lfs"
LFS_LIMIT = 1024
"""The specification's own limit on a pointer file, in bytes."""
MEMBER_LIMIT = 1_000_000


@dataclass(frozen=True)
class Member:
    """One file of the archive: `size` bytes from `offset` on, in the archive's byte order."""

    name: str
    size: int
    offset: int


class Archive(Protocol):
    """Random access to the members; `read_into` may be called from several threads."""

    path: Path
    members: dict[str, Member]
    sequential: bool
    """Reading backwards is slow (gzip): read in order of `offset`, from one thread."""

    def read_into(self, member: Member, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the member's bytes from `offset` on; NemotronError if they end."""

    def close(self) -> None: ...

    def __enter__(self) -> Archive: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def open_archive(path: Path) -> Archive:
    """The archive at `path`; NemotronError says what the file is instead, if it is none."""
    archive = FolderArchive(path) if path.is_dir() else _open_tar(path)
    try:
        _check_names(archive)
        _check_pointers(archive)
    except BaseException:
        archive.close()
        raise
    return archive


def _open_tar(path: Path) -> TarArchive:
    try:
        with path.open("rb") as file:
            magic = file.read(len(LFS_MAGIC))
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    if magic == LFS_MAGIC:
        raise _lfs_pointer(path)
    return TarArchive(path, compressed=magic.startswith(GZIP_MAGIC))


def _check_names(archive: Archive) -> None:
    """Names that differ in case only are one file on some systems: which one is chance."""
    if len(archive.members) > MEMBER_LIMIT:
        raise NemotronError(f"more than {MEMBER_LIMIT} members", where=archive.path)
    seen: dict[str, str] = {}
    for name in archive.members:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise NemotronError(
                f"members {other!r} and {name!r} differ in case only", where=archive.path
            )


def _check_pointers(archive: Archive) -> None:
    """A clone without Git LFS has small text files where the weights should be."""
    for member in archive.members.values():
        if archive.sequential or not len(LFS_MAGIC) <= member.size <= LFS_LIMIT:
            continue
        magic = bytearray(len(LFS_MAGIC))
        archive.read_into(member, 0, memoryview(magic))
        if magic == LFS_MAGIC:
            raise _lfs_pointer(f"{archive.path}: {member.name}")


def _lfs_pointer(where: object) -> NemotronError:
    return NemotronError(
        "this is a Git-LFS pointer, not the weights",
        where=where,
        remedy="run `git lfs pull` in the folder it came from",
    )


class _Closing(ABC):
    @abstractmethod
    def close(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class FolderArchive(_Closing):
    """Every regular file below a folder; symbolic links are refused, for they lead outside."""

    sequential = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: dict[str, Member] = {}
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        for folder, folders, files in os.walk(path):
            for name in sorted(folders + files):
                file = Path(folder, name)
                mode = file.lstat().st_mode
                if stat.S_ISDIR(mode):
                    continue
                if not stat.S_ISREG(mode):
                    raise NemotronError(
                        "not a regular file", where=file, remedy="a .nemo folder holds only files"
                    )
                relative = file.relative_to(path).as_posix()
                self.members[relative] = Member(relative, file.stat().st_size, 0)

    def __enter__(self) -> FolderArchive:
        return self

    def read_into(self, member: Member, offset: int, buffer: memoryview) -> None:
        with self._lock:
            descriptor = self._descriptors.get(member.name)
            if descriptor is None:
                if len(self._descriptors) >= 64:
                    for old in self._descriptors.values():
                        os.close(old)
                    self._descriptors.clear()
                descriptor = os.open(self.path / member.name, os.O_RDONLY)
                self._descriptors[member.name] = descriptor
            descriptor = os.dup(descriptor)
        try:
            _read_at(descriptor, offset, buffer, f"{self.path}: {member.name}")
        finally:
            os.close(descriptor)

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


class TarArchive(_Closing):
    """The members of a tar where they lie; a gzipped one is decompressed as it is read."""

    def __init__(self, path: Path, *, compressed: bool) -> None:
        self.path = path
        self.sequential = compressed
        self.members: dict[str, Member] = {}
        self._lock = threading.Lock()
        self._file = path.open("rb")
        self._stream: IO[bytes] | gzip.GzipFile = self._file
        try:
            if compressed:
                self._stream = gzip.GzipFile(fileobj=self._file)
            self._index()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TarArchive:
        return self

    def _index(self) -> None:
        size = self.path.stat().st_size
        try:
            with tarfile.open(fileobj=self._stream, mode="r:") as tar:
                for info in tar:
                    self._add(info)
                    if not self.sequential and info.offset_data + info.size > size:
                        raise NemotronError(
                            f"the tar is cut short: {info.name} should reach byte "
                            f"{info.offset_data + info.size}, the file has {size}",
                            where=self.path,
                            remedy="copy it again",
                        )
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
            raise NemotronError(
                f"not a .nemo: neither a folder nor a whole tar ({error})",
                where=self.path,
                remedy="name the .nemo file or the folder it was unpacked to",
            ) from error
        if not self.members:
            raise NemotronError("the tar is empty", where=self.path)

    def _add(self, info: tarfile.TarInfo) -> None:
        name = PurePosixPath(info.name)
        if name.is_absolute() or ".." in name.parts:
            raise NemotronError(f"member {info.name!r} points outside the archive", where=self.path)
        if info.isdir():
            return
        if not info.isreg() or info.issparse():
            raise NemotronError(
                f"member {info.name!r} is not a plain file (links, devices and sparse files have "
                "no place in a checkpoint)",
                where=self.path,
            )
        if str(name) in self.members:
            raise NemotronError(f"member {info.name!r} appears twice", where=self.path)
        self.members[str(name)] = Member(str(name), info.size, info.offset_data)

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


def read_bytes(archive: Archive, name: str, *, limit: int) -> bytes:
    """A small member whole; refuses one larger than `limit` bytes before reading it."""
    member = archive.members[name]
    if member.size > limit:
        raise NemotronError(
            f"{name} has {member.size} bytes, more than the {limit} such a file may have",
            where=archive.path,
        )
    buffer = bytearray(member.size)
    archive.read_into(member, 0, memoryview(buffer))
    return bytes(buffer)


def _read_at(descriptor: int, offset: int, buffer: memoryview, where: str) -> None:
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise NemotronError("the file ends early", where=where, remedy="copy it again")
        done += count
