"""Files that are written in one step, and the SHA-256 of files and texts."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nemotron_core.errors import NemotronError

PARTIAL = ".partial"
"""Suffix of a file or folder that is not complete yet."""
READ_SIZE = 1 << 20
"""Number of bytes read at a time for a hash."""


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 (hex) of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str


def partial_path(path: Path) -> Path:
    """Return the path under which `path` is written until it is complete."""
    return path.with_name(path.name + PARTIAL)


def write_atomically(path: Path, texts: str | Iterable[str]) -> None:
    """Write a UTF-8 file that replaces `path` in one step, durably.

    A reader sees the old file or the complete new one, also after a kill or a power failure. Raises
    `NemotronError` if the file cannot be written.
    """
    partial = partial_path(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines([texts] if isinstance(texts, str) else texts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror or error}", where=path) from error


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of entries, to disk. Raises `OSError` if the disk fails.

    Some network file systems cannot flush a folder and report EINVAL, which is not a failure.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def text_digest(text: str) -> str:
    """Return the SHA-256 (hex) of a text's UTF-8 bytes; lone surrogates are hashed as bytes."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def hash_file(path: Path, report: Callable[[int], None] = lambda done: None) -> FileEntry:
    """Return the size and SHA-256 of a file, read in bounded memory.

    `report` is called with the number of bytes of each piece that was read.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while data := file.read(READ_SIZE):
            digest.update(data)
            size += len(data)
            report(len(data))
    return FileEntry(size=size, sha256=digest.hexdigest())
