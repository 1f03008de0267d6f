"""The temporary files of a server, which the next start removes if a killed one left them."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "nemotron-"
LOCK_NAME = "lock"
LONGEST_PARENT = 60
"""Bytes of a path that leave room for the names of the sockets."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where shm_open puts it


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder that only this user can reach, and remove it with all shared memory of it.

    The names of its shared memory begin with the folder's name. The folder holds a lock for as long
    as this process lives. What killed servers have left is removed first.
    """
    remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_parent()))
    # The lock gets its name when it is held, so that no other start takes this for a leftover.
    unnamed = folder / f"{LOCK_NAME}.new"
    lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    unnamed.rename(folder / LOCK_NAME)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def remove_leftovers() -> None:
    """Remove this user's folders whose lock nobody holds, and their shared memory."""
    for lock in _parent().glob(f"{PREFIX}*/{LOCK_NAME}"):
        try:
            folder = lock.parent.lstat()
            if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.geteuid():
                continue
            file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # removed meanwhile
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            _remove(lock.parent)
        finally:
            os.close(file)


def shared_memory_prefix(folder: Path) -> str:
    """Return the prefix for the names of the shared memory of a server with this folder."""
    return f"{folder.name}-"


def remove_shared_memory(folder: Path) -> None:
    """Remove the shared memory that a killed Triton has left."""
    for file in SHARED_MEMORY.glob(f"{glob.escape(shared_memory_prefix(folder))}*"):
        file.unlink(missing_ok=True)


def _parent() -> Path:
    """Return where the folders are. A Unix socket's path has at most 107 bytes."""
    folder = tempfile.gettempdir()
    return Path(folder if len(os.fsencode(folder)) <= LONGEST_PARENT else "/tmp")  # noqa: S108


def _remove(folder: Path) -> None:
    remove_shared_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)
