"""How a client connects, waits, holds back and tries again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from nemotron_client.exceptions import ClientError, ConnectionFailed, ServerOverloaded

MAX_MESSAGE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds; None waits for ever. Past one, the request ends with RequestTimeout.

    Only `connect` ends with ConnectionFailed: nothing was asked yet.
    """

    connect: float = 10.0
    """Until there is a connection, TLS included."""
    first_token: float | None = None
    """From the question to the first piece of its answer: the queue and the prompt."""
    between_tokens: float | None = None
    """From one piece to the next."""
    total: float | None = None
    """For one request as a whole; each new try has it again."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may use."""

    concurrent_requests: int | None = None
    """More wait for their turn, in the client; None: no limit."""
    message_bytes: int = MAX_MESSAGE_BYTES
    """The largest request and the largest response."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """When a request is sent again: full queue or no connection, and nothing of its answer came.

    Every other failure would come again, or was paid for already. The wait doubles each time, and
    is drawn between half of that and all of it, so that clients do not come back together.
    """

    attempts: int = 3
    """All tries together; 1 never tries again."""
    first_delay: float = 0.25
    """Seconds."""
    longest_delay: float = 8.0
    """Seconds."""

    def delay(self, attempt: int, error: ClientError, *, begun: bool) -> float | None:
        """Seconds to wait after this attempt (the first is 1); None: do not try again."""
        safe = isinstance(error, ServerOverloaded | ConnectionFailed) and not begun
        if not safe or attempt >= self.attempts:
            return None
        longest = min(self.longest_delay, self.first_delay * 2.0 ** (attempt - 1))
        return longest * random.uniform(0.5, 1)  # noqa: S311  # spreads load, protects nothing


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files. Without `ca` the system's authorities are trusted."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    """With `certificate`: who this client is."""
