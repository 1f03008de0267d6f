"""The interface of an adapter: what the engine's process needs of a library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from nemotron_core.engine_settings import EngineSettings
from nemotron_engine.protocol import Capabilities, Chunk, Request


class LoraStore(Protocol):
    """The LoRA adapters that a library computes with, each loaded by its name."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the adapters that are loaded, in the order of loading."""

    def load(self, name: str, folder: Path) -> None:
        """Load a PEFT folder. Raises `NemotronError` if it does not fit, and changes nothing."""

    def unload(self, name: str) -> None:
        """Unload an adapter that no request uses. Raises `NemotronError` if there is none."""


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
    loras: LoraStore | None
    """`None` if this engine serves no LoRA adapters."""
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
