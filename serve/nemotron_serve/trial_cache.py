"""The cache of `nemotron try`: a folder for each trial, which one process at a time may use."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_core.folder import writing_errors

CACHE_VARIABLE = "NEMOTRON_CACHE"
"""Environment variable with the folder of the cache, instead of `~/.cache/nemotron`."""


def cache_folder() -> Path:
    """Return the folder in which trials are kept."""
    root = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "nemotron"
    return Path(root) / "try"


def cached() -> list[tuple[Path, int]]:
    """Return the folder of each trial, with its bytes."""
    return [(path, _bytes_in(path)) for path in _folders()]


def clean() -> list[tuple[Path, int]]:
    """Remove everything that trials have made. Returns what was removed, with its bytes.

    Raises `NemotronError`, before anything is removed, if a trial is made or served just now, and
    later if something cannot be removed.
    """
    with ExitStack() as stack:
        folders = _folders()
        for path in folders:
            stack.enter_context(held(path))
        removed = [(path, _bytes_in(path)) for path in folders]
        for path in folders:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise NemotronError(
                    f"cannot remove: {error.strerror or error}", where=path
                ) from error
    return removed


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Lock a trial's folder, which is made if there is none, and yield the lock's descriptor.

    The lock ends with the last process that has the descriptor, however that ends. It is one on the
    folder itself, so that a folder stays locked until the last of it is removed. Raises
    `NemotronError` if another process holds it, or if the folder cannot be made or locked.
    """
    with writing_errors(folder):
        descriptor = _open_locked(folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_locked(folder: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # `clean` removed it meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            os.close(descriptor)
            raise NemotronError(
                "another nemotron uses it", where=folder, remedy="end it first"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # `clean` removed it before it was locked


def _folders() -> list[Path]:
    folder = cache_folder()
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _bytes_in(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
