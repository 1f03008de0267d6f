"""What the CPU engine and its process tell each other."""

from __future__ import annotations

from typing import NamedTuple

from nemotron_convert.errors import NemotronError
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


class Hold(NamedTuple):
    """The answer to a report: until then tokens wait, but for the first and last of an answer."""

    until: float
    """Of `time.monotonic()`."""


class Report(NamedTuple):
    """What has come since the last one, and how the engine is doing. The first: it is loaded."""

    chunks: list[tuple[int, GenerationChunk | NemotronError]]
    steps: int
    kv_cache_usage: float
    """0 to 1."""
    failure: str | None = None
    """Why the process ends."""
