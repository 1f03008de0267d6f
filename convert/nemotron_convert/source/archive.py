"""What every reader sees of a `.nemo`: named byte ranges, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from nemotron_core.errors import NemotronError

LFS_MAGIC = b"version https://git-lfs"
POINTER_LIMIT = 1024
"""Git-LFS's own limit for the size of a pointer."""
MEMBER_LIMIT = 1_000_000
NAME_LIMIT = 1024


@dataclass(frozen=True)
class Member:
    """One file of the archive: `size` bytes from `offset` on, in the archive's byte order."""

    name: str
    size: int
    offset: int


class Bytes(Protocol):
    """Members to read from; `read_into` may be called from several threads."""

    path: Path

    def read_into(self, member: Member, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the member's bytes from `offset` on; NemotronError if they end."""


class Archive(Bytes, Protocol):
    """Random access to all members of one `.nemo`."""

    members: dict[str, Member]
    sequential: bool
    """Reading backwards is slow (gzip): read in order of `offset`, from one thread."""

    def close(self) -> None: ...

    def __enter__(self) -> Archive: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Index:
    """The members of an archive as they are found; refuses what no checkpoint has."""

    def __init__(self, path: Path) -> None:
        self.members: dict[str, Member] = {}
        self._path = path
        self._folded: dict[str, str] = {}
        self._entries = 0

    def count(self) -> None:
        """One more entry, a folder too; NemotronError past MEMBER_LIMIT."""
        self._entries += 1
        if self._entries > MEMBER_LIMIT:
            raise NemotronError(f"more than {MEMBER_LIMIT:,} files and folders", where=self._path)

    def add(self, member: Member) -> None:
        """NemotronError if the name is there already, also if only the case differs.

        Two such names are one file on many disks, so what was checked need not be what is read.
        """
        name = member.name
        if len(name) > NAME_LIMIT or not name.isprintable():
            raise NemotronError(
                f"member {short_name(name)} is no name for a file: longer than {NAME_LIMIT} "
                "characters, or not all of them printable",
                where=self._path,
            )
        other = self._folded.setdefault(name.casefold(), name)
        if name in self.members:
            raise NemotronError(f"member {name!r} appears twice", where=self._path)
        if other != name:
            raise NemotronError(
                f"members {other!r} and {name!r} differ only in case", where=self._path
            )
        self.members[name] = member


def short_name(name: str) -> str:
    """A member's name for a message: quoted, escaped, and not a page long."""
    return repr(name if len(name) <= 100 else name[:100] + "…")


def read_bytes(archive: Archive, name: str, *, limit: int) -> bytes:
    """A small member whole; refuses one larger than `limit` bytes before reading it."""
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
    """NemotronError if Git-LFS left a pointer where the member's content should be."""
    if not len(LFS_MAGIC) <= member.size <= POINTER_LIMIT:
        return
    magic = bytearray(len(LFS_MAGIC))
    archive.read_into(member, 0, memoryview(magic))
    if magic == LFS_MAGIC:
        raise lfs_pointer(f"{archive.path}: {member.name}")


def lfs_pointer(where: object) -> NemotronError:
    """The error for a file that is only Git-LFS's pointer to it."""
    return NemotronError(
        "this is a Git-LFS pointer, not the file itself",
        where=where,
        remedy="run `git lfs pull` in the folder it came from",
    )
