"""Locks on files and folders, which end with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from nemotron_core.errors import NemotronError

LOCK = ".lock"
"""File in a folder by whose lock the folder is held."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder and hold it for this process until the block ends.

    Raises `NemotronError` if it cannot be made or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(folder / LOCK)
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=folder) from error
    try:
        yield
    finally:
        os.close(descriptor)


def open_locked(path: Path) -> int:
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
