"""Output folders that appear under their name only when they are complete."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nemotron_core.errors import NemotronError
from nemotron_core.files import partial_path, sync

POLL_SECONDS = 1.0
T = TypeVar("T")


class NotReady(NemotronError):
    """Raised while another process has not finished something that this process needs."""


def retry_until_ready(attempt: Callable[[], T], patience: float) -> T:
    """Return the result of `attempt`, which is repeated while it raises `NotReady`.

    Each new reason to wait is printed on standard error. Raises the last `NotReady` after
    `patience` seconds.
    """
    deadline = time.monotonic() + patience
    last_reason = ""
    while True:
        try:
            return attempt()
        except NotReady as error:
            if time.monotonic() >= deadline:
                raise
            if str(error) != last_reason:
                last_reason = str(error)
                print(f"waiting: {last_reason}", file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a folder beside `output` to write into; rename it to `output` if nothing is raised.

    After an exception the folder is removed. After a kill it stays under `output` + ".partial",
    which nothing takes for a result and which the next run replaces. Raises `NemotronError` if
    `output` exists and is not an empty folder.
    """
    with unfinished_folder(output, keep=False) as partial:
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def unfinished_folder(output: Path, *, keep: bool) -> Iterator[Path]:
    """Yield the folder of `new_folder`, but leave it there after an exception.

    With `keep`, files of an earlier run stay in it. Only one process at a time may write it: raises
    `NotReady` if another process does.
    """
    check_output(output)
    partial = partial_path(output)
    descriptor = -1
    with writing_errors(output):
        try:
            partial.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
            _lock(descriptor, partial)
            if not keep:
                empty_folder(partial)
            yield partial
            for path in partial.rglob("*"):
                sync(path)
            sync(partial)
            if output.exists():
                output.rmdir()
            partial.rename(output)
            sync(output.parent)
        finally:
            if descriptor >= 0:
                os.close(descriptor)


@contextmanager
def writing_errors(output: Path) -> Iterator[None]:
    """Turn an `OSError` in the block into a `NemotronError` about `output`."""
    try:
        yield
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror or error}", where=output) from error


def check_output(output: Path, *, source: Path | None = None) -> None:
    """Raise `NemotronError` if a new folder cannot be made at `output`.

    That is so if there is something but an empty folder, a link, the folder that the command runs
    in or one above it, a place inside `source`, or a place where nothing can be written.
    """
    other = "name another with -o"
    if output.is_symlink():
        raise NemotronError(
            "the output is a symbolic link", where=output, remedy="name the folder itself with -o"
        )
    place = output.resolve()
    if Path.cwd().is_relative_to(place):
        raise NemotronError(
            "the output is the folder that the command runs in, or one above it",
            where=output,
            remedy="name a new folder with -o",
        )
    if source is not None and place.is_relative_to(source.resolve()):
        raise NemotronError("the output is inside the input", where=output, remedy=other)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise NemotronError(
            "the output exists and is not an empty folder",
            where=output,
            remedy=f"{other} or remove it",
        )
    parent = next(folder for folder in place.parents if folder.exists())
    if not parent.is_dir():
        raise NemotronError(f"{parent} is not a folder", where=output, remedy=other)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise NemotronError(
            f"nothing can be written in {parent}: it is read-only, or not yours",
            where=output,
            remedy=other,
        )


def require_unlocked(output: Path) -> None:
    """Raise `NotReady` if another process is writing `output`.

    This spares a process the work before `unfinished_folder`, which decides who writes.
    """
    partial = partial_path(output)
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:  # nothing is there, or `unfinished_folder` will say what is wrong with it
        return
    try:
        with writing_errors(output):
            _lock(descriptor, partial)
    finally:
        os.close(descriptor)


def existing_folder(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists: they are on the same disk."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _lock(descriptor: int, folder: Path) -> None:
    """Lock the folder. The lock belongs to the open descriptor, so it ends with the process."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _being_written(folder) from error
    try:
        is_same = os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        is_same = False
    if not is_same:  # another process finished and renamed it before this one locked it
        raise _being_written(folder)


def is_being_written(folder: Path) -> bool:
    """Return whether another process has an unfinished folder open."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _being_written(folder: Path) -> NotReady:
    return NotReady("another process is writing it", where=folder, remedy="wait for it or end it")


def empty_folder(folder: Path) -> None:
    """Remove everything in a folder. Raises `OSError` if that is not possible."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
