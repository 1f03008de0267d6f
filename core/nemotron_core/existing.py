"""What to do with an output that is there already: say which option fits, or replace it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_core.files import partial_path
from nemotron_core.folder import is_being_written

REPLACED = ".replaced"
"""Suffix of an output that is being replaced, until the new one is complete."""


def require_choice(output: Path, marker: str, what: str, *, can_resume: bool = False) -> None:
    """Raise `NemotronError` with the options that fit if an output is there, or a part of one.

    `marker` is the name of the file that only a finished output has, and `what` is what it is.
    With `can_resume`, a part of one is worth something too.
    """
    if (output / marker).is_file():
        raise NemotronError(
            f"the output exists: it is a finished {what}",
            where=output,
            remedy="--reuse keeps it if it is the one that you ask for, --overwrite replaces it,"
            " or name another with -o",
        )
    place = output.resolve()
    if not can_resume or not place.name:  # the root of all folders
        return
    partial = partial_path(place)
    if partial.is_dir() and any(partial.iterdir()) and not is_being_written(partial):
        raise NemotronError(
            "an interrupted run has left a part of it",
            where=partial,
            remedy="--resume goes on from it, --overwrite begins again",
        )


@contextmanager
def replacing(output: Path, marker: str) -> Iterator[None]:
    """Put a finished output out of the way, for a block that makes a new one.

    If the block raises, the old output comes back. After a kill it stays under `output` +
    ".replaced", until the next call has made a new one or puts it back. Raises `NemotronError` if
    either folder has not the file `marker`: nothing that this program has not written is removed.
    """
    if output.is_symlink():
        raise NemotronError(
            "the output is a symbolic link", where=output, remedy="name the folder itself with -o"
        )
    output = output.resolve()
    aside = output.with_name(output.name + REPLACED)
    for folder in (output, aside):
        if _has_content(folder) and not (folder / marker).is_file():
            raise NemotronError(
                f"the output has no {marker}, so it is not replaced",
                where=folder,
                remedy="name another with -o or remove it",
            )
    try:
        if _has_content(output):
            if aside.exists():
                shutil.rmtree(aside)
            output.rename(aside)
    except OSError as error:
        raise NemotronError(f"cannot replace it: {error.strerror}", where=output) from error
    try:
        yield
    except BaseException:
        if aside.exists() and not output.exists():
            aside.rename(output)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _has_content(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))
