"""An output folder that appears under its name only when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemotron_convert.errors import NemotronError

PARTIAL = ".partial"


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write into; it is renamed to `output` if nothing is raised.

    After an exception it is removed; after a kill it stays under `output` + ".partial", which
    nothing takes for a result and the next run replaces. NemotronError if `output` holds something.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise NemotronError(
            "the output exists and is not an empty folder",
            where=output,
            remedy="name another with -o or remove it",
        )
    partial = output.with_name(output.name + PARTIAL)
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        _sync(partial)
        if output.exists():
            output.rmdir()
        partial.rename(output)
        _sync(output.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise NemotronError(f"cannot write: {error.strerror or error}", where=output) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
