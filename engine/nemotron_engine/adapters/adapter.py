"""The interface of an adapter: what the engine's process needs of a library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from nemotron_core.engine_settings import EngineSettings
from nemotron_engine.protocol import Capabilities, Chunk, Request


class Adapter(Protocol):
    """Runs many requests at once with one library.

    Only one thread calls it. Requests are checked before they come here, and every rule that is the
    same for all libraries (deadlines, stop sequences, counters, the last chunk of a cancelled
    request) is applied above it.
    """

    settings: EngineSettings
    library: str
    """Name and version of the library."""
    capabilities: Capabilities
    wake_file: int | None
    """File that is readable when `collect` has something to return.

    `None` if the library is stepped: then `collect` computes a step, and is called without a pause
    while requests run.
    """

    def ask(self, request: Request) -> None:
        """Begin a request with the next step. Raises `NemotronError` if the library refuses it."""

    def cancel(self, key: bytes) -> None:
        """Free what a request holds. Nothing needs to be collected for it anymore."""

    def collect(self) -> Iterable[Chunk]:
        """Return the new tokens of all requests. Any exception means that the engine is lost."""

    def kv_cache_usage(self) -> float | None:
        """Return the fraction of the KV cache in use, or `None` if the library does not say."""

    def workers(self) -> Sequence[int]:
        """Return the ids of this machine's processes without which the engine is lost."""

    def close(self) -> None:
        """End the library. No request runs anymore."""
