"""Messages between the CPU engine and its process."""

from __future__ import annotations

import pickle
from typing import NamedTuple

from typing_extensions import Self

from nemotron_core.errors import NemotronError
from nemotron_engine.request import GenerationChunk, GenerationRequest


class Ask(NamedTuple):
    """A request to the process, with the number that its sender gives it.

    Requests that were submitted together are sent as one list and begin in one step. So each of
    several answers is rounded as it would be alone, and its seed gives the same sample.
    """

    number: int
    request: GenerationRequest
    deadline: float
    """Seconds of `time.monotonic()`, a clock that all processes of a machine share."""


class Cancel(NamedTuple):
    """A command to end a request after the current step."""

    number: int


class Report(NamedTuple):
    """Chunks since the last report, and the engine's load. The first report means: it is loaded."""

    chunks: list[tuple[int, GenerationChunk | NemotronError]]
    steps: int
    kv_cache_usage: float
    """Fraction of the KV cache in use, 0 to 1."""
    failure: str | None = None
    """Reason why the process ends; `None` while it continues."""

    def pack(self) -> bytes:
        """Return the report as bytes.

        Chunks become tuples: looking up their class takes four times as long as all the rest.
        """
        chunks = [
            (number, chunk if isinstance(chunk, NemotronError) else tuple(chunk))
            for number, chunk in self.chunks
        ]
        return pickle.dumps((chunks, *self[1:]), pickle.HIGHEST_PROTOCOL)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Return the report that `pack` made these bytes from."""
        chunks, *rest = pickle.loads(packed)  # noqa: S301  # from our own process
        return cls(
            [
                (number, GenerationChunk(*chunk) if isinstance(chunk, tuple) else chunk)
                for number, chunk in chunks
            ],
            *rest,
        )
