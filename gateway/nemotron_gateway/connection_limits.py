"""Bounds on what one client's connections may take: headers, time, and their number."""

from __future__ import annotations

import asyncio
from collections import Counter
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nemotron_gateway.settings import GatewaySettings

BODY_GRACE_SECONDS = 2.0
"""Time in which the answer to a body that is late (status 408) may still be sent."""
UPLOADS = "/v1/files"
"""Path to which files come, for which the time for a body is one without a piece of it."""


def bounded_protocol(settings: GatewaySettings) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol with the bounds of the settings, for all connections together."""
    limits, timeouts = settings.limits, settings.timeouts
    open_connections: Counter[str] = Counter()

    class BoundedProtocol(HttpToolsProtocol):
        """A connection that is closed if a request on it takes too long or too much.

        uvicorn itself has a limit only for the time between two requests.
        """

        _deadline: asyncio.TimerHandle | None = None
        _address = ""
        _parsed_bytes = _received_bytes = 0
        _are_headers_due = True
        """Whether what comes belongs to a request's line and headers."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._address = self.client[0] if self.client else ""
            open_connections[self._address] += 1
            if (
                open_connections.total() > limits.connections
                or open_connections[self._address] > limits.connections_per_address
            ):
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open")
                return
            self._expect(timeouts.headers)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._expect(None)
            open_connections[self._address] -= 1
            if not open_connections[self._address]:
                del open_connections[self._address]

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self._are_headers_due:
                # The parser keeps a header for itself until it is complete.
                self._received_bytes += len(data)
                self._check_headers()
            is_idle = self.cycle is None or self.cycle.response_complete
            if is_idle and self._deadline is None and self.timeout_keep_alive_task is None:
                self._expect(timeouts.headers)  # only empty lines have come

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._parsed_bytes = self._received_bytes = 0
            self._are_headers_due = True
            self._expect(timeouts.headers)

        def on_url(self, url: bytes) -> None:
            super().on_url(url)
            self._parsed_bytes += len(url)
            self._check_headers()

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            self._parsed_bytes += len(name) + len(value)
            self._check_headers()

        def on_headers_complete(self) -> None:
            if self.transport.is_closing():
                return
            self._are_headers_due = False
            super().on_headers_complete()
            self._expect(timeouts.body + BODY_GRACE_SECONDS)

        def on_body(self, body: bytes) -> None:
            if self.transport.is_closing():
                return
            super().on_body(body)
            if self.scope["path"] == UPLOADS and not self.cycle.response_complete:
                self._expect(timeouts.body + BODY_GRACE_SECONDS)

        def on_message_complete(self) -> None:
            if self.transport.is_closing():
                return
            super().on_message_complete()
            self._expect(None)

        def _check_headers(self) -> None:
            size, count = max(self._parsed_bytes, self._received_bytes), len(self.headers or ())
            if size > limits.header_bytes or count > limits.headers:
                self._refuse(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"at most {limits.headers} headers with {limits.header_bytes} bytes",
                )

        def _expect(self, seconds: float | None) -> None:
            """Close the connection in `seconds`, unless this is called again before."""
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            if seconds is not None and not self.transport.is_closing():
                self._deadline = self.loop.call_later(seconds, self._give_up)

        def _give_up(self) -> None:
            self.transport.abort()

        def _refuse(self, status: HTTPStatus, message: str) -> None:
            """Answer a request that is not read to its end, and close the connection."""
            if self.transport.is_closing():
                return
            self._expect(None)
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\n"
            head += "Content-Type: text/plain; charset=utf-8\r\n"
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                head += "Retry-After: 1\r\n"
            body = f"{message}\n"
            self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            self.transport.close()

    return BoundedProtocol


class HostCheck:
    """The names in the header `Host` that are served, or any if `names` has an asterisk.

    Otherwise a page of another site could reach a gateway on the visitor's own machine under its
    own name, for which it gets a DNS entry with the address of loopback.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = {name.lower() for name in names}

    def serves(self, host: str) -> bool:
        """Return whether a request with that header is served. An empty one is no browser's."""
        if not host or not self._names or "*" in self._names:
            return True
        name = host.lower()
        if name.endswith("]") or name.rpartition(":")[2].isdigit():
            name = name if name.endswith("]") else name.rpartition(":")[0]
        return name.strip("[]").rstrip(".") in self._names
