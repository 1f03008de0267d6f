"""An output folder that appears under its name only when it is whole."""

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
    """Another process has still to finish what this one needs."""


def retry_until_ready(attempt: Callable[[], T], patience: float) -> T:
    """The result of `attempt`, which is made again for `patience` seconds while it is too early."""
    deadline = time.monotonic() + patience
    told = ""
    while True:
        try:
            return attempt()
        except NotReady as error:
            if time.monotonic() >= deadline:
                raise
            if str(error) != told:
                told = str(error)
                print(f"waiting: {told}", file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write into; it is renamed to `output` if nothing is raised.

    After an exception it is removed; after a kill it stays under `output` + ".partial", which
    nothing takes for a result and the next run replaces. NemotronError if `output` holds something.
    """
    with unfinished_folder(output, keep=False) as partial:
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def unfinished_folder(output: Path, *, keep: bool) -> Iterator[Path]:
    """The same, but it stays after an exception, and with `keep` what is in it stays at the start.

    One process at a time: NemotronError if another one is writing it.
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
                _empty(partial)
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
    """What the operating system refuses, as a NemotronError about `output`."""
    try:
        yield
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror or error}", where=output) from error


def check_output(output: Path) -> None:
    """NemotronError if something would be overwritten."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise NemotronError(
            "the output exists and is not an empty folder",
            where=output,
            remedy="name another with -o or remove it",
        )


def _lock(descriptor: int, folder: Path) -> None:
    """The lock belongs to the open descriptor, so it ends with the process, however that ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _being_written(folder) from error
    try:
        ours = os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        ours = False
    if not ours:  # it was finished and renamed between our opening and our locking it
        raise _being_written(folder)


def _being_written(folder: Path) -> NotReady:
    return NotReady("another process is writing it", where=folder, remedy="wait for it or end it")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
