"""What ends a run before its rows are done: a signal, or the program that the run is part of."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nemotron_core.errors import ErrorKind, NemotronError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(NemotronError):
    """A run was ended early; everything that was written stays."""

    kind = ErrorKind.INTERRUPTED


class Interruption:
    """Ends a run early, from any thread, also a run that has not begun yet.

    The first `stop` lets the requests finish that are at the server; the second drops them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stops = 0
        self._stop_run: Callable[[], object] | None = None

    def stop(self) -> None:
        """End the run."""
        with self._lock:
            self._stops += 1
            if self._stop_run is not None:
                self._stop_run()

    @contextmanager
    def calls(self, stop: Callable[[], None]) -> Iterator[None]:
        """Let `stop` be called in the running event loop, once for each call of the method."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._stop_run = lambda: loop.call_soon_threadsafe(stop)
            for _ in range(self._stops):
                self._stop_run()
        try:
            yield
        finally:
            with self._lock:
                self._stop_run = None


class Signals(Interruption):
    """The signals SIGINT and SIGTERM. For runs in the main thread."""

    @contextmanager
    def calls(self, stop: Callable[[], None]) -> Iterator[None]:
        """Let each signal call `stop`."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop)
        try:
            with super().calls(stop):
                yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
