"""An engine that only hands out tokens, as fast as they are taken: what it costs to serve them.

It is put in the place of the CPU lane's engine, inside the model `tensorrt_llm`, by the benches of
the serving path; the product knows nothing of it.
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
"""Stands before the real model, which is `served` then."""


class SyntheticEngine:
    """See `Engine`: each step gives each request its next token, and takes no time."""

    def __init__(self, folder: Path) -> None:
        settings = CpuEngineSettings.read(folder)
        self._admission = Admission(settings)
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._left: dict[str, int] = {}
        self._on_chunk: dict[str, OnChunk] = {}
        self._held: dict[str, list[int]] = {}
        self._pace = Pace("pytorch")  # as beside a GPU: it takes nothing from who serves
        self._steps = 0
        self._thread = threading.Thread(target=self._run, name="engine step", daemon=True)
        self._thread.start()

    def submit_all(self, requests: Sequence[tuple[GenerationRequest, OnChunk]]) -> None:
        self._admission.admit([request for request, _ in requests])
        for one in requests:
            self._inbox.put(one)

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
        while self._take():
            self._steps += 1
            start, sent = time.monotonic(), 0
            due = self._pace.burst(start, len(self._left)) != burst
            burst += due
            for name, left in list(self._left.items()):
                begins = name not in self._held
                held = self._held.setdefault(name, [])
                held.append(100 + left % 100)  # common pieces: printable text, never an end
                self._left[name] = left - 1
                if left == 1:
                    self._end(name, GenerationChunk(tuple(held), finish_reason="length"))
                elif due or begins:
                    self._on_chunk[name](GenerationChunk(tuple(held)))
                    held.clear()
                    sent += 1
            if sent:
                self._pace.sent((time.monotonic() - start) / sent)
        for name in list(self._left):
            self._end(name, GenerationChunk((), finish_reason="cancelled"))

    def _take(self) -> bool:
        while True:
            try:
                item = self._inbox.get(block=not self._left)
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, str):
                if item in self._left:
                    self._end(item, GenerationChunk((), finish_reason="cancelled"))
            else:
                request, on_chunk = item
                self._left[request.request_id] = request.max_tokens
                self._on_chunk[request.request_id] = on_chunk

    def _end(self, name: str, last: GenerationChunk | NemotronError) -> None:
        del self._left[name]
        self._held.pop(name, None)
        self._admission.leave(name)
        self._on_chunk.pop(name)(last)


@contextmanager
def in_place_of_the_engine() -> Iterator[None]:
    """A `TritonServer` that is started meanwhile has this engine."""

    def render(*arguments: Any, **named: Any) -> None:
        render_repository(*arguments, **named)
        code = Path(arguments[3], "tensorrt_llm", "1")
        shutil.move(code / "model.py", code / "served.py")
        (code / "model.py").write_text(MODEL)

    with patch("nemotron_serve.server.render_repository", render):
        yield
