"""An engine that computes nothing, so that measurements show only the cost of serving tokens.

It runs in the engine's own process, in the place of a library:

    python -m nemotron_engine --lane bench.measurements.synthetic_engine:SyntheticAdapter \\
        --socket PATH ENGINE

At a fixed pace each running request gets its next token, as with a large model on a GPU: the
environment variable `SYNTHETIC_HZ` has the steps per second, 120 by default. 0 means no pause.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_engine.protocol import Capabilities, Chunk, Request

HZ_VARIABLE = "SYNTHETIC_HZ"
DEFAULT_HZ = 120.0
LANE = f"{__name__}:SyntheticAdapter"
FIRST_ID, IDS = 100, 100
"""Range of the generated ids. They are printable pieces, never an end token."""
MAX_LATE_SECONDS = 0.1
"""Time without the CPU that the engine makes up for. A longer one slows it down."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_TIMER = struct.Struct("4q")
"""`struct itimerspec`: seconds and nanoseconds of the interval, and of the first expiry."""


class SyntheticAdapter:
    """See `Adapter`. The folder of an engine of the CPU lane gives the limits."""

    library = "synthetic"
    capabilities = Capabilities()
    loras = None

    def __init__(self, folder: Path) -> None:
        self.settings = CpuEngineSettings.read(folder)
        hz = float(os.environ.get(HZ_VARIABLE, DEFAULT_HZ))
        self._timer = Timer(1 / hz) if hz else None
        self._max_steps = max(1, int(hz * MAX_LATE_SECONDS))
        self.wake_file = self._timer.file if self._timer else None
        self._remaining: dict[bytes, int] = {}
        """Number of tokens to come of each request, in the order of arrival."""

    def ask(self, request: Request) -> None:
        """See `Adapter`."""
        if self._timer and not self._remaining:
            self._timer.start()
        self._remaining[request.key] = request.max_tokens

    def cancel(self, key: bytes) -> None:
        """See `Adapter`."""
        self._remaining.pop(key, None)
        self._stop_if_idle()

    def collect(self) -> Iterator[Chunk]:
        """Return the tokens of the steps that are due."""
        steps = min(self._timer.expirations(), self._max_steps) if self._timer else 1
        if not steps:
            return iter(())
        chunks = []
        for key, remaining in list(islice(self._remaining.items(), self.settings.max_batch_size)):
            left = max(0, remaining - steps)
            ids = [FIRST_ID + number % IDS for number in range(remaining, left, -1)]
            if left:
                self._remaining[key] = left
                chunks.append(Chunk(key, ids))
            else:
                del self._remaining[key]
                chunks.append(Chunk(key, ids, finish_reason="length"))
        self._stop_if_idle()
        return iter(chunks)

    def workers(self) -> list[int]:
        return []

    def kv_cache_usage(self) -> None:
        """See `Adapter`."""

    def close(self) -> None:
        """See `Adapter`."""
        if self._timer:
            os.close(self._timer.file)

    def _stop_if_idle(self) -> None:
        if self._timer and not self._remaining:
            self._timer.stop()


class Timer:
    """A periodic timer of the kernel. Python has none before 3.13."""

    def __init__(self, seconds: float) -> None:
        self._period = divmod(int(seconds * 1e9), 10**9)
        self.file: int = _LIBC.timerfd_create(
            ctypes.c_int(1), ctypes.c_int(os.O_NONBLOCK | os.O_CLOEXEC)
        )
        """File that is readable once the timer has expired. 1 is CLOCK_MONOTONIC."""
        if self.file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def start(self) -> None:
        """Let the timer expire after each period from now on."""
        self._set(*self._period, *self._period)

    def stop(self) -> None:
        """Disarm the timer, and forget its expirations."""
        self._set(0, 0, 0, 0)

    def expirations(self) -> int:
        """Return the number of expirations since the last call."""
        try:
            return int.from_bytes(os.read(self.file, 8), "little")
        except BlockingIOError:
            return 0

    def _set(self, *values: int) -> None:
        if _LIBC.timerfd_settime(self.file, 0, _TIMER.pack(*values), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
