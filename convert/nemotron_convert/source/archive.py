"""The interface of a `.nemo` container: named members, read by byte range."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from nemotron_core.errors import NemotronError

LFS_MAGIC = b"version https://git-lfs"
POINTER_LIMIT = 1024
"""Largest size in bytes of a Git-LFS pointer, by Git-LFS's own rule."""
MEMBER_LIMIT = 1_000_000
"""Largest number of files and folders in an archive."""
NAME_LIMIT = 1024
"""Largest number of characters in a member's name."""


@dataclass(frozen=True)
class Member:
    """One file of the archive: `size` bytes, from byte `offset` of the (decompressed) tar on.

    The offset in a folder is 0.
    """

    name: str
    size: int
    offset: int


class Bytes(Protocol):
    """Something that holds the bytes of members. All methods may be called from any thread."""

    @property
    def path(self) -> Path: ...

    def read_into(self, member: Member, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the member's bytes from `offset` on.

        Raises `NemotronError` if the bytes cannot be read or end before the buffer is full.
        """


class Archive(Bytes, Protocol):
    """All members of one `.nemo`, with access in any order."""

    members: dict[str, Member]
    sequential: bool
    """Whether reading backwards is slow (gzip): read in order of `offset`, from one thread."""

    def modified(self, name: str) -> int:
        """Return when a member was modified before it was opened, in ns since the epoch."""

    def drop_cached(self, member: Member) -> None:
        """Let the kernel forget a member, so that it is read from the disk again."""

    def changed(self, names: Iterable[str]) -> list[str]:
        """Return those of the members that are no longer what they were when they were opened."""

    def close(self) -> None: ...


class FileStatus(NamedTuple):
    """What a file keeps as long as nobody writes or replaces it."""

    device: int
    inode: int
    size: int
    modified: int
    """Time of the last modification in ns since the epoch."""

    @classmethod
    def of(cls, status: os.stat_result) -> FileStatus:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Index:
    """Collects the members of an archive and refuses names and numbers that no checkpoint has."""

    def __init__(self, path: Path) -> None:
        self.members: dict[str, Member] = {}
        self._path = path
        self._folded: dict[str, str] = {}
        self._entries = 0

    def count(self) -> None:
        """Count one file or folder. Raises `NemotronError` if there are more than MEMBER_LIMIT."""
        self._entries += 1
        if self._entries > MEMBER_LIMIT:
            raise NemotronError(f"more than {MEMBER_LIMIT:,} files and folders", where=self._path)

    def add(self, member: Member) -> None:
        """Add a member. Raises `NemotronError` if its name is not usable or is already taken.

        Two names that differ only in case are refused as well: on many disks they are one file, so
        the file that was checked need not be the file that is read.
        """
        name = member.name
        if len(name) > NAME_LIMIT or not name.isprintable():
            raise NemotronError(
                f"member {short_name(name)} is no name for a file: longer than {NAME_LIMIT} "
                "characters, or not all of them printable",
                where=self._path,
            )
        earlier_name = self._folded.setdefault(name.casefold(), name)
        if name in self.members:
            raise NemotronError(f"member {name!r} appears twice", where=self._path)
        if earlier_name != name:
            raise NemotronError(
                f"members {earlier_name!r} and {name!r} differ only in case", where=self._path
            )
        self.members[name] = member


def short_name(name: str) -> str:
    """Return a member's name for an error message: quoted, escaped, at most 100 characters."""
    return repr(name if len(name) <= 100 else name[:100] + "…")


def read_bytes(archive: Archive, name: str, *, limit: int) -> bytes:
    """Return the content of a small member.

    Raises `NemotronError`, before reading, if it is larger than `limit` bytes or a Git-LFS pointer.
    """
    member = archive.members[name]
    if member.size > limit:
        raise NemotronError(
            f"{name} has {member.size} bytes, more than the {limit} such a file may have",
            where=archive.path,
        )
    refuse_pointer(archive, member)
    buffer = bytearray(member.size)
    archive.read_into(member, 0, memoryview(buffer))
    return bytes(buffer)


def refuse_pointer(archive: Bytes, member: Member) -> None:
    """Raise `NemotronError` if the member is a Git-LFS pointer instead of the content."""
    if not len(LFS_MAGIC) <= member.size <= POINTER_LIMIT:
        return
    magic = bytearray(len(LFS_MAGIC))
    archive.read_into(member, 0, memoryview(magic))
    if magic == LFS_MAGIC:
        raise lfs_pointer(f"{archive.path}: {member.name}")


def lfs_pointer(where: object) -> NemotronError:
    """Return the error for a file that is a Git-LFS pointer."""
    return NemotronError(
        "this is a Git-LFS pointer, not the file itself",
        where=where,
        remedy="run `git lfs pull` in the folder it came from",
    )
