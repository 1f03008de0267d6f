"""Settings of a client (timeouts, limits, retries, TLS), and the options of one request."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_client.exceptions import ClientError, ConnectionFailed, ServerOverloaded

MAX_MESSAGE_BYTES = 64 << 20
KEEPALIVE_SECONDS = 310.0
"""Triton closes a connection ("too many pings") on which pings come more often than every 300 s
while nothing else is sent, unless its options say otherwise."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Timeouts in seconds; `None` means no timeout.

    A request that exceeds one ends with `RequestTimeout`. Only `connect` ends with
    `ConnectionFailed`, because no request has been sent yet.
    """

    connect: float = 10.0
    """Time to connect, TLS included."""
    first_token: float | None = None
    """Time from the request to the first piece of its answer: queue and prompt processing."""
    between_tokens: float | None = None
    """Time from one piece to the next."""
    total: float | None = None
    """Time for one attempt of a request as a whole."""
    keepalive: float = KEEPALIVE_SECONDS
    """Time between two pings while a call waits, which detect a server whose machine vanished. Only
    gRPC has them. A server that `nemotron serve` started takes any; see `KEEPALIVE_SECONDS`."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one client."""

    concurrent_requests: int | None = None
    """Number of requests at once; further ones wait in the client. `None` means no limit."""
    message_bytes: int = MAX_MESSAGE_BYTES
    """Largest size in bytes of a request, and of a response."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """Retries of a request.

    A request is sent again if the queue was full or there was no connection, and no piece of its
    answer has been read. Any other failure would happen again, or has already used the engine. The
    delay doubles with each attempt, and is drawn between half of that and all of it, so that
    clients do not return at the same time.
    """

    attempts: int = 3
    """Number of attempts, the first one included."""
    first_delay: float = 0.25
    """Longest delay in seconds after the first attempt."""
    longest_delay: float = 8.0
    """Longest delay in seconds after any attempt."""

    def delay(self, attempt: int, error: ClientError, *, has_started: bool) -> float | None:
        """Return the seconds to wait after attempt `attempt` (the first is 1).

        Returns `None` if the request must not be sent again. `has_started` says whether a piece of
        the answer has been read.
        """
        safe = isinstance(error, ServerOverloaded | ConnectionFailed) and not has_started
        if not safe or attempt >= self.attempts:
            return None
        longest = min(self.longest_delay, self.first_delay * 2.0 ** (attempt - 1))
        return longest * random.uniform(0.5, 1)  # noqa: S311  # spreads load, protects nothing


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What goes with one request beside its prompt and its `Generation`."""

    request_id: str | None = None
    """Id of the request at the server, in its logs and traces; random if it is `None`. Two running
    requests with the same id are stopped together."""
    priority: int | None = None
    """Triton's priority, 0 or more. Engines without priorities refuse it."""
    timeout: float | None = None
    """Seconds that the server has for the answer, including the queue. Beyond them, the request
    ends with `RequestTimeout`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """HTTP headers, or gRPC's metadata, of this request beside the client's own."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Paths of PEM files. Without `ca` the system's certificate authorities are trusted."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    """Private key of `certificate`, which proves the client's identity to the server."""
