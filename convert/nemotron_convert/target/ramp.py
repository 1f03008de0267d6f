"""How many threads copy: more, as long as more copy faster."""

from __future__ import annotations

import os

CORES = os.cpu_count() or 1
FIRST_THREADS = 4
MOST_THREADS = 2 * min(16, CORES)
"""Threads wait for the disk about half of the time."""
WINDOW_SECONDS = 0.5
"""Duration over which the speed of a number of threads is measured."""
GAIN = 1.1
"""Least speed-up for which the number of threads is doubled again."""


class Ramp:
    """Doubles the threads from `FIRST_THREADS` to `MOST_THREADS` while that makes copying faster.

    A disk has its own best number, from two for a spinning one to dozens for a network's, which
    nothing but a trial shows. With `fixed`, the number is the user's and does not change.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.threads = fixed or min(FIRST_THREADS, MOST_THREADS)
        self._is_settled = fixed is not None
        self._best_rate = 0.0
        self._bytes = self._time = 0.0

    def begin(self, now: float) -> None:
        """Start the first window. `now` is in seconds of any clock."""
        self._time = now

    def more(self, nbytes: int, now: float) -> int:
        """Return the number of threads to add, given all bytes that were copied until `now`."""
        elapsed = now - self._time
        if self._is_settled or elapsed < WINDOW_SECONDS:
            return 0
        rate = (nbytes - self._bytes) / elapsed
        self._bytes, self._time = nbytes, now
        if rate < GAIN * self._best_rate or self.threads >= MOST_THREADS:
            self._is_settled = True
            return 0
        self._best_rate = rate
        added = min(self.threads, MOST_THREADS - self.threads)
        self.threads += added
        return added
