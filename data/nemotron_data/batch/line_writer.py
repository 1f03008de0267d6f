"""Files of lines that no later run continues: standard output, and the failed rows of a run."""

from __future__ import annotations

import os
from pathlib import Path

from nemotron_core.errors import NemotronError


class LineWriter:
    """Writes lines to a stream."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name

    def append(self, line: bytes) -> None:
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=self._name) from error

    def tick(self) -> None:
        """Do nothing: no line is buffered."""


class ErrorFile:
    """The file with the failed rows of a run; the first one replaces those of the run before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: LineWriter | None = None
        self._descriptor = -1

    def append(self, line: bytes) -> None:
        if self._writer is None:
            try:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            except OSError as error:
                raise NemotronError(f"cannot write: {error.strerror}", where=self._path) from error
            self._writer = LineWriter(self._descriptor, str(self._path))
        self._writer.append(line)

    def tick(self) -> None:
        """Do nothing: no line is buffered."""

    def close(self) -> None:
        if self._writer is not None:
            os.close(self._descriptor)
