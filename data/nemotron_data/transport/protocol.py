"""The protocol of a transport, with the answers and failures that every transport has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nemotron_core.errors import ErrorKind
from nemotron_data.rows import Row

API_KEY = "NEMOTRON_API_KEY"
"""Name of the environment variable with the server's API key. The key is never written anywhere."""
MAX_TOKENS = 1024
"""Default of `max_tokens` for rows that do not set it."""
MODEL = "nemotron-4-340b-instruct"
"""Default of `model` for rows that do not set it."""


@dataclass(frozen=True)
class Answer:
    """A response in the form of OpenAI's API."""

    status: int
    """HTTP status."""
    request_id: str
    body: Mapping[str, Any]

    def token_count(self, name: str) -> int:
        """Return a count of the body's `usage`, or 0 if the server does not report it."""
        usage = self.body.get("usage")
        count = usage.get(name) if isinstance(usage, dict) else None
        return count if isinstance(count, int) else 0


class Failure(Exception):
    """A request that got no answer.

    Transports raise these kinds: `REFUSED` (the row is wrong), `OVERLOADED` (send it again later,
    with fewer requests at once), `UNREACHABLE` (wait for the server), and `FAILED` or `TIMED_OUT`
    (try it again, but only a few times).
    """

    def __init__(
        self,
        kind: ErrorKind,
        text: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(" ".join(text.split()))
        self.kind = kind
        self.status = status
        """HTTP status of the response, or the one that the gateway would send; `None` if no
        response came over HTTP."""
        self.retry_after = retry_after
        """Seconds that the server asks clients to wait."""


class Transport(Protocol):
    """A connection to a server.

    Every method raises `Failure`, or `NemotronError` if no row could ever be answered.
    """

    async def describe(self) -> dict[str, str | None]:
        """Return what the server says about itself. Raises `Failure` if it is unreachable.

        The keys are `model` (a name) and `engine`, `checkpoint` and `template` (hashes). A value is
        `None`, or its key is missing, if the server does not report it.
        """
        ...

    async def send(self, row: Row, body: Mapping[str, Any]) -> Answer:
        """Return the answer to `row`, whose request body with the run's defaults is `body`."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
