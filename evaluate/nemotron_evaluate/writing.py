"""Folders that are made and files that are written, with one error for a disk that refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nemotron_core.errors import NemotronError


@contextlib.contextmanager
def writing(where: Path | str) -> Iterator[None]:
    """Raise `NemotronError` in the place of an `OSError` inside the block."""
    try:
        yield
    except OSError as error:
        raise NemotronError(
            f"cannot write: {error.strerror or error}",
            where=where,
            remedy="make room, or allow to write there; the same command goes on",
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder and those that it lies in. Raises `NemotronError` if that fails."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
