"""The batches of all keys: which ones run, which wait for a place, and when they are too late."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from pathlib import Path

from nemotron_data.batch.lock import held
from nemotron_gateway.batches.execution import Execution
from nemotron_gateway.batches.records import Batch
from nemotron_gateway.batches.store import Store
from nemotron_gateway.batches.transport import Inside
from nemotron_gateway.settings import GatewaySettings

GRACE_SECONDS = 600.0
"""Time for the running requests of a batch that was cancelled or is too late."""
CLOSE_SECONDS = 5.0
"""Time for the threads of batches to end when the gateway does."""


class Scheduler:
    """Runs batches in threads, the oldest first, and at most `files.batches` at once.

    Must be opened inside the gateway's event loop. Raises `NemotronError` if another gateway uses
    the folder, or if it cannot be read.
    """

    def __init__(self, settings: GatewaySettings, folder: Path, inside: Inside) -> None:
        self._settings, self._folder, self._inside = settings, folder, inside
        self._executions: dict[str, Execution] = {}
        """Batches that have not ended, by their ids."""
        self._waiting: deque[Execution] = deque()
        self._threads: dict[Execution, threading.Thread] = {}
        self._timers: dict[Execution, asyncio.TimerHandle] = {}
        self._is_draining = False
        self._held = contextlib.ExitStack()
        self.store: Store

    def open(self) -> None:
        """Read the folder, and go on with the batches that have not ended."""
        self._loop = asyncio.get_running_loop()
        self._held.enter_context(held(self._folder))
        self.store = Store(self._folder)
        for owner, batch in self.store.unfinished():
            self.submit(owner, batch)

    @property
    def running(self) -> int:
        """Number of batches that run."""
        return len(self._threads)

    def submit(self, owner: str, batch: Batch) -> None:
        """Run a batch as soon as there is a place."""
        execution = Execution.of(
            self.store.of(owner), owner, batch.id, self._settings, self._inside
        )
        self._executions[batch.id] = execution
        self._waiting.append(execution)
        seconds = max(0.0, batch.expires_at - time.time())
        self._timers[execution] = self._loop.call_later(seconds, self._expire, execution)
        self._start_waiting()

    def view(self, owner: str, batch_id: str) -> Batch:
        """Return an owner's batch as it is now. Raises `HttpError` 404 if there is none."""
        batch = self.store.of(owner).stored(batch_id).batch
        execution = self._executions.get(batch_id)
        return batch if execution is None else execution.view()

    async def cancel(self, owner: str, batch_id: str) -> Batch:
        """Cancel an owner's batch, and return it. Nothing happens to one that is about to end."""
        self.store.of(owner).stored(batch_id)
        execution = self._executions.get(batch_id)
        if execution is not None:
            await asyncio.to_thread(execution.cancel)
            self._end_early(execution)
        return self.view(owner, batch_id)

    def drain(self) -> None:
        """Start nothing more, and let the running requests finish."""
        self._is_draining = True
        for execution in self._threads:
            execution.stop()

    async def close(self) -> None:
        """End all threads, and leave the folder to others."""
        self.drain()
        for execution, thread in list(self._threads.items()):
            execution.stop()
            await asyncio.to_thread(thread.join, CLOSE_SECONDS)
        for timer in self._timers.values():
            timer.cancel()
        self._held.close()

    def _expire(self, execution: Execution) -> None:
        execution.expire()
        self._end_early(execution)

    def _end_early(self, execution: Execution) -> None:
        """See to it that a batch that was cancelled or is too late ends soon."""
        if execution in self._waiting:
            # It asks nothing any more, so it needs no place.
            self._waiting.remove(execution)
            self._start(execution)
        elif execution in self._threads:
            self._timers[execution].cancel()
            self._timers[execution] = self._loop.call_later(GRACE_SECONDS, execution.stop)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._threads) < self._settings.files.batches:
            if self._is_draining:
                return
            self._start(self._waiting.popleft())

    def _start(self, execution: Execution) -> None:
        def run() -> None:
            try:
                execution.run()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended before the thread
                    self._loop.call_soon_threadsafe(self._end, execution)

        # The end of the process does not wait for it: a batch may be killed at any time.
        thread = threading.Thread(target=run, name=execution.batch_id, daemon=True)
        self._threads[execution] = thread
        thread.start()

    def _end(self, execution: Execution) -> None:
        del self._threads[execution]
        self._timers.pop(execution).cancel()
        del self._executions[execution.batch_id]
        self._start_waiting()
