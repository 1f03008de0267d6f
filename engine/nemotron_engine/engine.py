"""An engine: tokens in, tokens out, the same for every lane that is not TensorRT's own backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nemotron_core.errors import NemotronError
from nemotron_engine.request import GenerationChunk, GenerationRequest

OnChunk = Callable[[GenerationChunk | NemotronError], None]


@dataclass(frozen=True)
class EngineState:
    """At one moment."""

    steps: int
    """Since the start."""
    waiting: int
    """Requests that wait for their first step."""
    kv_cache_usage: float | None
    """0 to 1; None where nobody says."""


class Engine(Protocol):
    """Runs many requests at once; every method may be called from any thread.

    `on_chunk` is called from one thread, in order, until a chunk with a finish reason or a
    NemotronError; it must not block. After an answer's first tokens, those of several steps come in
    one chunk where `on_chunk` takes more than its share of the time; see `pace`.
    """

    def submit_all(self, requests: Sequence[tuple[GenerationRequest, OnChunk]]) -> None:
        """Queue some requests or none of them.

        NemotronError at once if one is wrong or its id is in use; Overloaded if too many wait.
        """

    def cancel(self, request_id: str) -> bool:
        """End a request after the running step; False if there is none of that id."""

    def state(self) -> EngineState:
        """How it is doing."""

    def close(self) -> None:
        """Stop; requests that still run end as cancelled."""


def open_engine(lane: str, folder: Path) -> Engine:
    """The engine of a folder from `nemotron build`; each lane's libraries load only for itself."""
    if lane == "cpu":
        from nemotron_engine.cpu import CpuEngine  # noqa: PLC0415

        return CpuEngine(folder)
    from nemotron_engine.pytorch import PyTorchEngine  # noqa: PLC0415

    return PyTorchEngine(folder)
