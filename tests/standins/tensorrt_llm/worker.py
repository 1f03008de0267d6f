"""What computes instead of GPUs: a thread that steps the CPU engine."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nemotron_engine.adapters.openvino import OpenVinoAdapter
from nemotron_engine.protocol import Chunk, Request

OnChunk = Callable[[Chunk], object]
STEP_SECONDS = 0.002
"""Pause after a step. A GPU's step is longer, and leaves the cores to whoever reads the tokens."""


class Worker:
    """Takes requests and returns chunks, until it dies: then nothing comes any more."""

    def __init__(self, folder: Path) -> None:
        self._adapter = OpenVinoAdapter(folder)
        self.vocab_size = self._adapter.settings.vocab_size
        self.error: RuntimeError | None = None
        """Why it has died, which whoever looks may know."""
        self._inbox: queue.SimpleQueue[tuple[Request, OnChunk] | bytes | None] = queue.SimpleQueue()
        self._running: dict[bytes, OnChunk] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, request: Request, on_chunk: OnChunk) -> None:
        self._inbox.put((request, on_chunk))

    def cancel(self, key: bytes) -> None:
        self._inbox.put(key)

    def die(self, error: RuntimeError | None) -> None:
        """End as a worker that raises `error`, or that a signal has killed if there is none."""
        self.close()
        self.error = error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            while not self._running or not self._inbox.empty():
                item = self._inbox.get()
                if item is None:
                    return
                if isinstance(item, bytes):
                    self._adapter.cancel(item)
                    self._running.pop(item, None)
                else:
                    request, self._running[request.key] = item
                    self._adapter.ask(request)
            for chunk in self._adapter.collect():
                on_chunk = self._running[chunk.key]
                if chunk.finish_reason:
                    del self._running[chunk.key]
                on_chunk(chunk)
            time.sleep(STEP_SECONDS)
