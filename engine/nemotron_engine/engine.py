"""The protocol of an engine, the same for every lane but TensorRT-LLM's C++ backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nemotron_core.errors import NemotronError
from nemotron_engine.request import GenerationChunk, GenerationRequest

OnChunk = Callable[[GenerationChunk | NemotronError], None]


@dataclass(frozen=True)
class EngineState:
    """An engine's load at one moment."""

    steps: int
    """Number of steps since the start."""
    waiting: int
    """Number of requests that wait for their first step."""
    kv_cache_usage: float | None
    """Fraction of the KV cache in use, 0 to 1; `None` if the engine does not report it."""


class Engine(Protocol):
    """Runs many requests at once. Every method may be called from any thread.

    `on_chunk` is called from one thread, in order, until a chunk with a finish reason or a
    `NemotronError`; it must not block. After a request's first tokens, the tokens of several steps
    come in one chunk where `on_chunk` takes more than its fraction of the time; see `pace`.
    """

    def submit_all(self, requests: Sequence[tuple[GenerationRequest, OnChunk]]) -> None:
        """Queue all of the requests, or none of them.

        Raises `NemotronError` at once if a request is invalid or its id is in use, and `Overloaded`
        if too many requests wait.
        """

    def cancel(self, request_id: str) -> bool:
        """End a request after the current step. Return whether a request has this id."""

    def state(self) -> EngineState:
        """Return the engine's load."""

    def close(self) -> None:
        """Stop the engine. Requests that still run end as cancelled."""
