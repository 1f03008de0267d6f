"""What a batch asks of a server, whichever wire is between them."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from nemotron_core.errors import NemotronError
from nemotron_data.rows import Row

API_KEY = "NEMOTRON_API_KEY"
"""The environment variable with the server's key; it is never written anywhere."""
MAX_TOKENS = 1024
"""For rows that do not say."""
MODEL = "nemotron-4-340b-instruct"


@dataclass(frozen=True)
class Answer:
    """A response as OpenAI's API writes it."""

    status: int
    request_id: str
    body: Mapping[str, Any]

    def tokens(self, name: str) -> int:
        """A count of its `usage`; 0 if the server does not count."""
        usage = self.body.get("usage")
        count = usage.get(name) if isinstance(usage, dict) else None
        return count if isinstance(count, int) else 0


class Kind(enum.Enum):
    """What a failure means for the row and for the run."""

    REFUSED = "refused"
    """The request is wrong: asking again will not help."""
    OVERLOADED = "overloaded"
    """The server takes no more now: later, and fewer at once."""
    FAILED = "failed"
    """This time it went wrong: again, but not for ever."""
    LOST = "lost"
    """There is no server: wait for it."""


class Failure(Exception):
    """Why there is no answer. `status` is HTTP's, as the gateway would send it."""

    def __init__(
        self, kind: Kind, text: str, *, status: int | None = None, after: float | None = None
    ) -> None:
        super().__init__(" ".join(text.split()))
        self.kind = kind
        self.status = status
        self.after = after
        """Seconds that the server asks to wait."""


class Transport(Protocol):
    """A server. Every method raises Failure, or NemotronError when no row could ever be asked."""

    async def describe(self) -> dict[str, str | None]:
        """What the server tells of itself, None for what it does not; Failure if it is not there.

        `model`, `engine`, `checkpoint`, `template`: a name and three hashes.
        """
        ...

    async def ask(self, row: Row, body: Mapping[str, Any]) -> Answer:
        """The answer to `body`, which has the run's defaults in it."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


def open_transport(
    url: str, *, timeout: float, most: int, key_variable: str = API_KEY
) -> Transport:
    """For `http(s)://` an OpenAI-compatible server, for `grpc(s)://` Triton itself.

    `timeout` is in seconds for one request, `most` the largest number at once. The key is taken
    from the environment. NemotronError for any other URL.
    """
    key = os.environ.get(key_variable) or None
    parts = urlsplit(url)
    try:
        is_whole = parts.hostname is not None and (parts.port is not None or "http" in parts.scheme)
    except ValueError:
        is_whole = False
    if is_whole and parts.scheme in ("grpc", "grpcs"):
        from nemotron_data.transport.triton import TritonTransport  # noqa: PLC0415

        secure = parts.scheme == "grpcs"
        return TritonTransport(parts.netloc, secure=secure, key=key, timeout=timeout)
    if is_whole and parts.scheme in ("http", "https"):
        from nemotron_data.transport.openai import OpenAITransport  # noqa: PLC0415

        return OpenAITransport(url, key=key, key_variable=key_variable, timeout=timeout, most=most)
    raise NemotronError(
        "not the URL of a server",
        where=url,
        remedy="give http://HOST:1424 of the gateway or grpc://HOST:8001 of Triton",
    )
