"""A point in time that two processes share in memory."""

from __future__ import annotations

import mmap
import os

SIZE = 8
"""Bytes of a float64."""


class SharedTime:
    """Seconds of `time.monotonic()`, a float64 in shared memory.

    Reading and writing take no system call, and are atomic because the float64 is aligned.
    """

    def __init__(self, file: int | None = None) -> None:
        """Create a shared time of 0.0, or open the one of a process that passed on its `file`."""
        if file is None:
            file = os.memfd_create("shared time")
            os.ftruncate(file, SIZE)
        self.file = file
        self._seconds = memoryview(mmap.mmap(file, SIZE)).cast("d")

    @property
    def seconds(self) -> float:
        """The shared time, seconds of `time.monotonic()`."""
        return self._seconds[0]

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._seconds[0] = value

    def close(self) -> None:
        """Close the file, once it is passed on. The memory stays mapped."""
        os.close(self.file)
