"""A file that is read by byte range, and whether it is still the same."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nemotron_convert.source.archive import FileStatus
from nemotron_core.errors import NemotronError


@dataclass(frozen=True)
class OpenedFile:
    """A file and its status when it was found."""

    path: Path
    status: FileStatus

    def is_changed(self) -> bool:
        """Return whether the file is no longer the same, or is gone."""
        try:
            return FileStatus.of(self.path.stat(follow_symlinks=False)) != self.status
        except OSError:
            return True


def read_at(descriptor: int, offset: int, buffer: memoryview, where: str) -> None:
    """Fill `buffer` from `offset` of a file on, or raise `NemotronError`."""
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise NemotronError(f"cannot read: {error.strerror}", where=where) from error
        if count == 0:
            raise NemotronError("the file ends early", where=where, remedy="copy it again")
        done += count
