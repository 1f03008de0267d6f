"""A `.nemo` that was unpacked to a folder, or lies as a snapshot in a Hugging Face cache."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from nemotron_convert.source.archive import MEMBER_LIMIT, FileStatus, Index, Member, short_name
from nemotron_convert.source.opened_file import OpenedFile, read_at
from nemotron_core.errors import NemotronError

DEPTH_LIMIT = 32
"""Largest number of folders inside each other."""
OPEN_FILES = 64
"""Largest number of files that are kept open."""


class FolderArchive:
    """All files below a folder.

    Symbolic links are followed only to the blobs of the Hugging Face cache that the folder belongs
    to; any other link is refused, because it can lead outside.
    """

    sequential = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        self._files: dict[str, OpenedFile] = {}
        blobs = _cache_blobs(path)
        index = Index(path)
        for name, entry_status in _walk(path):
            index.count()
            target, status = path / name, entry_status
            if stat.S_ISDIR(status.st_mode):
                continue
            if stat.S_ISLNK(status.st_mode) and blobs:
                target = _blob(target, blobs)
                status = target.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise NemotronError(
                    f"{short_name(name)} is not a plain file",
                    where=path,
                    remedy="a .nemo folder holds only files; links are followed only inside a "
                    "Hugging Face cache",
                )
            index.add(Member(name, status.st_size, 0))
            self._files[name] = OpenedFile(target, FileStatus.of(status))
        self.members = index.members

    def read_into(self, member: Member, offset: int, buffer: memoryview) -> None:
        where = f"{self.path}: {member.name}"
        with self._lock:
            descriptor = os.dup(self._descriptor(member.name, where))
        try:
            read_at(descriptor, offset, buffer, where)
        finally:
            os.close(descriptor)

    def drop_cached(self, member: Member) -> None:
        with self._lock:
            descriptor = self._descriptor(member.name, f"{self.path}: {member.name}")
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def modified(self, name: str) -> int:
        return self._files[name].status.modified

    def changed(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._files[name].is_changed()]

    def _descriptor(self, name: str, where: str) -> int:
        if name not in self._descriptors:
            if len(self._descriptors) >= OPEN_FILES:
                self.close()
            try:
                # A link that was put there after the folder was listed is not followed.
                target = self._files[name].path
                self._descriptors[name] = os.open(target, os.O_RDONLY | os.O_NOFOLLOW)
            except OSError as error:
                raise NemotronError(f"cannot read: {error.strerror}", where=where) from error
        return self._descriptors[name]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def _cache_blobs(path: Path) -> Path | None:
    """Return the folder of blobs if `path` is a snapshot in a Hugging Face cache, or inside one.

    Such a cache has `models--NAME/blobs/…` with the content and `models--NAME/snapshots/REVISION/…`
    with links to it.
    """
    for folder in path.resolve().parents:
        if folder.name == "snapshots" and (folder.parent / "blobs").is_dir():
            return folder.parent / "blobs"
    return None


def _blob(link: Path, blobs: Path) -> Path:
    """Return the file that a link of a snapshot leads to.

    Raises `NemotronError` if it leads out of `blobs`, or to nothing.
    """
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise NemotronError(
            f"{short_name(link.name)} is a link to a blob that is not there",
            where=link.parent,
            remedy="finish the download with `hf download`",
        ) from error
    if target.parent != blobs:
        raise NemotronError(
            f"{short_name(link.name)} is a link that leads out of the cache's blobs",
            where=link.parent,
            remedy="download the snapshot again with `hf download`",
        )
    return target


def _walk(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name relative to `top`, status) of each file, link and folder below `top`."""
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
        for basename, status in sorted(listing, key=lambda item: item[0]):
            name = folder + basename
            yield name, status
            if stat.S_ISDIR(status.st_mode):
                if name.count("/") >= DEPTH_LIMIT:
                    raise NemotronError(
                        f"folders more than {DEPTH_LIMIT} deep: {short_name(name)}", where=top
                    )
                pending.append(name + "/")
