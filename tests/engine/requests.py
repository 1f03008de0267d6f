"""Requests to a scheduler in this process, which the test steps until they end."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from nemotron_engine.adapters.adapter import Adapter
from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import KEY_BYTES, Chunk, Request
from nemotron_engine.scheduler import Scheduler

NEVER = 0  # an end id that greedy decoding does not reach


def request(ids: list[int], **fields: Any) -> Request:
    defaults: dict[str, Any] = {"max_tokens": 64, "end_ids": [5]}
    key = secrets.token_bytes(KEY_BYTES)
    return Request(**({"key": key, "input_ids": ids} | defaults | fields))


@dataclass
class Answer:
    """Collects one request's chunks."""

    engine: Engine
    request: Request
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: str = ""
    scheduled_ns: int = 0
    chunks: int = 0
    failure: Chunk | None = None

    def push(self, chunk: Chunk) -> None:
        assert not self.finish_reason
        self.token_ids += chunk.token_ids
        self.log_probs += chunk.log_probs
        self.finish_reason = chunk.finish_reason
        self.scheduled_ns = chunk.scheduled_ns
        self.chunks += 1
        if chunk.finish_reason == "error":
            self.failure = chunk

    def begin(self) -> Answer:
        """Step the engine until the first token has come."""
        while not (self.token_ids or self.finish_reason):
            self.engine.step()
        return self

    def wait(self) -> Answer:
        """Step the engine until the answer is whole. Raises its error."""
        while not self.finish_reason:
            self.engine.step()
        if self.failure is not None:
            raise self.failure.failure()
        return self


class Engine:
    """A scheduler over an adapter, and one client's outbox."""

    def __init__(self, adapter: Adapter) -> None:
        self.scheduler = Scheduler(adapter)
        self.outbox = Outbox()
        self.answers: dict[bytes, Answer] = {}

    def ask(self, ids: list[int], **fields: Any) -> Answer:
        (answer,) = self.ask_all([request(ids, **fields)])
        return answer

    def ask_all(self, requests: list[Request]) -> list[Answer]:
        """Begin requests together."""
        answers = [Answer(self, request) for request in requests]
        self.answers |= {answer.request.key: answer for answer in answers}
        self.scheduler.ask(requests, self.outbox)
        self._deliver()
        return answers

    def cancel(self, *answers: Answer) -> None:
        self.scheduler.cancel([answer.request.key for answer in answers])
        self._deliver()

    def step(self) -> None:
        self.scheduler.collect()
        self._deliver()

    def _deliver(self) -> None:
        for chunk in self.outbox.take():
            self.answers[chunk.key].push(chunk)
