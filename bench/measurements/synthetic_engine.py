"""An engine whose steps take no time, so that measurements show only the cost of serving tokens.

Measurements of the serving path put it in the place of the CPU lane's engine, inside the model
`tensorrt_llm`. The product has no reference to it.
"""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_engine.admission import Admission
from nemotron_engine.engine import EngineState, OnChunk
from nemotron_engine.pace import Pace
from nemotron_engine.request import GenerationChunk, GenerationRequest
from nemotron_serve.repository import render_repository

ROOT = Path(__file__).parents[2]
MODEL = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import nemotron_engine.adapters
from bench.measurements.synthetic_engine import SyntheticEngine
nemotron_engine.adapters.open_engine = lambda lane, folder: SyntheticEngine(folder)
from served import TritonPythonModel
"""
"""Content of `model.py` with the synthetic engine; the real model is the module `served`."""


class SyntheticEngine:
    """See `Engine`. Each step gives each request its next token."""

    def __init__(self, folder: Path) -> None:
        settings = CpuEngineSettings.read(folder)
        self._admission = Admission(settings)
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._remaining: dict[str, int] = {}
        self._on_chunk: dict[str, OnChunk] = {}
        self._unsent: dict[str, list[int]] = {}
        self._pace = Pace("pytorch")  # as with a GPU: the engine takes no CPU from the server
        self._steps = 0
        self._thread = threading.Thread(target=self._run, name="engine step", daemon=True)
        self._thread.start()

    def submit_all(self, requests: Sequence[tuple[GenerationRequest, OnChunk]]) -> None:
        self._admission.admit([request for request, _ in requests])
        for request in requests:
            self._inbox.put(request)

    def cancel(self, request_id: str) -> bool:
        known = self._admission.has(request_id)
        if known:
            self._inbox.put(request_id)
        return known

    def state(self) -> EngineState:
        return EngineState(self._steps, self._admission.waiting, None)

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        burst = 0
        while self._receive():
            self._steps += 1
            start, sent = time.monotonic(), 0
            due = self._pace.burst(start, len(self._remaining)) != burst
            burst += due
            for request_id, remaining in list(self._remaining.items()):
                is_first = request_id not in self._unsent
                unsent = self._unsent.setdefault(request_id, [])
                unsent.append(100 + remaining % 100)  # printable pieces, never an end token
                self._remaining[request_id] = remaining - 1
                if remaining == 1:
                    self._finish(request_id, GenerationChunk(tuple(unsent), finish_reason="length"))
                elif due or is_first:
                    self._on_chunk[request_id](GenerationChunk(tuple(unsent)))
                    unsent.clear()
                    sent += 1
            if sent:
                self._pace.record_cost((time.monotonic() - start) / sent)
        for request_id in list(self._remaining):
            self._finish(request_id, GenerationChunk((), finish_reason="cancelled"))

    def _receive(self) -> bool:
        """Take all new requests and cancellations. Returns `False` once the engine is closed."""
        while True:
            try:
                item = self._inbox.get(block=not self._remaining)
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, str):
                if item in self._remaining:
                    self._finish(item, GenerationChunk((), finish_reason="cancelled"))
            else:
                request, on_chunk = item
                self._remaining[request.request_id] = request.max_tokens
                self._on_chunk[request.request_id] = on_chunk

    def _finish(self, request_id: str, last: GenerationChunk | NemotronError) -> None:
        del self._remaining[request_id]
        self._unsent.pop(request_id, None)
        self._admission.leave(request_id)
        self._on_chunk.pop(request_id)(last)


@contextmanager
def synthetic_engines() -> Iterator[None]:
    """Let each `TritonServer` that starts in this context have the synthetic engine."""

    def render(*arguments: Any, **named: Any) -> None:
        render_repository(*arguments, **named)
        code = Path(arguments[3], "tensorrt_llm", "1")
        shutil.move(code / "model.py", code / "served.py")
        (code / "model.py").write_text(MODEL)

    with patch("nemotron_serve.server.render_repository", render):
        yield
