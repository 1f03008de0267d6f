"""Adapters that compute nothing: each token is the one before plus one."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from nemotron_core.engine_settings import EngineSettings
from nemotron_core.errors import NemotronError
from nemotron_engine.adapters.adapter import LoraStore
from nemotron_engine.protocol import Capabilities, Chunk, Request

VOCAB_SIZE = 10_000_000
MAX_SEQ_LEN = 5_000_000
MAX_BATCH_SIZE = 64
MAX_QUEUE_SIZE = 64
REQUEST_SECONDS = 3600
FATAL, REFUSED, SILENT = 9_999_991, 9_999_992, 9_999_993
"""First tokens of prompts: the engine is lost, the library refuses, no token ever comes."""
STEP_SECONDS = "FAKE_STEP_SECONDS"
"""Environment variable with the time of a step."""


class FakeAdapter:
    """A library that is stepped. Each chunk has `self.tokens_per_step` tokens."""

    library = "fake 1.0"
    capabilities = Capabilities()
    loras: LoraStore | None = None
    wake_file: int | None = None

    def __init__(self, folder: Path | None = None) -> None:
        self.settings = EngineSettings(
            vocab_size=VOCAB_SIZE,
            max_seq_len=MAX_SEQ_LEN,
            max_batch_size=MAX_BATCH_SIZE,
            max_num_tokens=8192,
            max_queue_size=MAX_QUEUE_SIZE,
            request_seconds=REQUEST_SECONDS,
        )
        self.tokens_per_step = 1
        self.running: dict[bytes, Request] = {}
        self.counts: dict[bytes, int] = {}
        self.cancelled: list[bytes] = []
        self.step_seconds = float(os.environ.get(STEP_SECONDS, "0"))

    def ask(self, request: Request) -> None:
        if request.input_ids[0] == REFUSED:
            raise NemotronError("the library refuses")
        self.running[request.key] = request
        self.counts[request.key] = 0

    def cancel(self, key: bytes) -> None:
        self.running.pop(key, None)
        self.cancelled.append(key)

    def collect(self) -> list[Chunk]:
        time.sleep(self.step_seconds)
        running = [
            (key, request)
            for key, request in self.running.items()
            if request.input_ids[0] != SILENT
        ]
        if any(request.input_ids[0] == FATAL for _, request in running):
            raise RuntimeError("the library is lost")
        return [self._chunk(key, request) for key, request in running]

    def _chunk(self, key: bytes, request: Request) -> Chunk:
        start = self.counts[key]
        end = min(start + self.tokens_per_step, request.max_tokens)
        self.counts[key] = end
        ids = [request.input_ids[-1] + 1 + number for number in range(start, end)]
        log_probs = [-float(id_) for id_ in ids] if request.log_probs else []
        if end < request.max_tokens:
            return Chunk(key, ids, log_probs)
        del self.running[key]
        return Chunk(key, ids, log_probs, "length")

    def kv_cache_usage(self) -> float | None:
        return len(self.running) / MAX_BATCH_SIZE

    def workers(self) -> list[int]:
        return []

    def close(self) -> None:
        pass


class FakeLoras:
    """Adapters that are nothing but names. The folder `missing` cannot be loaded."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def load(self, name: str, folder: Path) -> None:
        if folder.name == "missing":
            raise NemotronError("there is no adapter", where=folder)
        self.names.append(name)

    def unload(self, name: str) -> None:
        self.names.remove(name)


class LoraAdapter(FakeAdapter):
    """A library with LoRA adapters."""

    capabilities = Capabilities(features=["lora"])

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.loras = FakeLoras()


class WakingAdapter(FakeAdapter):
    """A library that computes by itself and says when there is something to collect."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.wake_file = self._event = os.eventfd(0, os.EFD_NONBLOCK)
        threading.Thread(target=self._compute, daemon=True).start()

    def collect(self) -> list[Chunk]:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        return super().collect()

    def _compute(self) -> None:
        while True:
            time.sleep(max(self.step_seconds, 1e-4))
            if any(request.input_ids[0] != SILENT for request in list(self.running.values())):
                os.eventfd_write(self._event, 1)
