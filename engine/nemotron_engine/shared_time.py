"""A moment that two processes share, for news that is not worth a message."""

from __future__ import annotations

import mmap
import os

SIZE = 8
"""Bytes of a float64."""


class SharedTime:
    """Seconds of `time.monotonic()`, a float64 in memory; reading and writing take no system call.

    Aligned, so each is done in one piece.
    """

    def __init__(self, file: int | None = None) -> None:
        """A new one, 0.0, or that of the process which passed on its open `file`."""
        if file is None:
            file = os.memfd_create("shared time")
            os.ftruncate(file, SIZE)
        self.file = file
        self._seconds = memoryview(mmap.mmap(file, SIZE)).cast("d")

    @property
    def seconds(self) -> float:
        return self._seconds[0]

    @seconds.setter
    def seconds(self, moment: float) -> None:
        self._seconds[0] = moment

    def close(self) -> None:
        """Of the file, once it is passed on; the memory stays."""
        os.close(self.file)
