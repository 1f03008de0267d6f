"""Requests to an engine, without a server."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_engine.cpu import CpuEngine
from nemotron_engine.request import GenerationChunk, GenerationRequest
from tests.waiting import WAIT

NEVER = 0  # an end id that greedy decoding does not reach


@dataclass
class Answer:
    """Collects one request's chunks."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: NemotronError | None = None
    chunks: int = 0
    first: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def push(self, chunk: GenerationChunk | NemotronError) -> None:
        if isinstance(chunk, NemotronError):
            self.error = chunk
        else:
            self.token_ids += chunk.token_ids
            self.log_probs += chunk.log_probs
            self.finish_reason = chunk.finish_reason
            self.chunks += 1
        self.first.set()
        if self.error or self.finish_reason:
            self.done.set()

    def wait(self) -> Answer:
        assert self.done.wait(WAIT)
        if self.error:
            raise self.error
        return self


def request(ids: list[int], name: str = "one", **fields: Any) -> GenerationRequest:
    defaults: dict[str, Any] = {"max_tokens": 64, "end_ids": (5,)}
    return GenerationRequest(request_id=name, input_ids=tuple(ids), **(defaults | fields))


def ask(engine: CpuEngine, ids: list[int], name: str = "one", **fields: Any) -> Answer:
    answer = Answer()
    engine.submit_all([(request(ids, name, **fields), answer.push)])
    return answer
