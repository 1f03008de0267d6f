"""What the CPU engine and its process tell each other."""

from __future__ import annotations

import pickle
from typing import NamedTuple

from typing_extensions import Self

from nemotron_core.errors import NemotronError
from nemotron_engine.request import GenerationChunk, GenerationRequest


class Ask(NamedTuple):
    """A request, by the number that its sender gives it.

    Sent in lists of what was submitted together, which begins in one step: so each of several
    answers is rounded as it would be alone, and its seed gives the same sample.
    """

    number: int
    request: GenerationRequest
    deadline: float
    """Of `time.monotonic()`, which all processes of a machine share."""


class Cancel(NamedTuple):
    """End a request after the running step."""

    number: int


class Report(NamedTuple):
    """What has come since the last one, and how the engine is doing. The first: it is loaded."""

    chunks: list[tuple[int, GenerationChunk | NemotronError]]
    steps: int
    kv_cache_usage: float
    """0 to 1."""
    failure: str | None = None
    """Why the process ends."""

    def pack(self) -> bytes:
        """As tuples: looking up the classes would take four times as long as all the rest."""
        chunks = [
            (number, chunk if isinstance(chunk, NemotronError) else tuple(chunk))
            for number, chunk in self.chunks
        ]
        return pickle.dumps((chunks, *self[1:]), pickle.HIGHEST_PROTOCOL)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        chunks, *rest = pickle.loads(packed)  # noqa: S301  # from a process of our own
        return cls(
            [
                (number, GenerationChunk(*chunk) if isinstance(chunk, tuple) else chunk)
                for number, chunk in chunks
            ],
            *rest,
        )
