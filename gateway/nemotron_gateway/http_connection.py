"""HTTP/1.1 connections to one server, which stay open from one request to the next.

Each event of each streamed answer passes through here, so this does no more than it must: HTTP
libraries for everything take a quarter to a half more computing time for an event.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import httptools

CONNECT_SECONDS = 5.0
MAX_IDLE_SECONDS = 60.0
"""Seconds after which an idle connection is not used again: a router may have forgotten it."""
MAX_BUFFERED_BYTES = 1 << 18
"""Number of bytes of a response that are read ahead."""
CLOSED = "the server closed the connection"
PROBES = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""TCP's keepalive probes, which detect a server whose machine vanished."""


class DeadlineExceeded(Exception):
    """The time allowed for a request is over."""


class Connection(asyncio.Protocol):
    """A connection, and the response to the request that was sent last."""

    status = 0
    """HTTP status of the response."""
    is_open = False
    idle_since = 0.0
    """Time by `time.monotonic` since which no request uses the connection."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._wakeup: asyncio.Future[None] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._error: Exception | None = None

    async def send(self, request: bytes, seconds: float) -> None:
        """Send a request, whose response must be whole within `seconds`, and read its status.

        Raises `OSError` if the connection fails, and `DeadlineExceeded`.
        """
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._has_status = self._is_whole = self._keeps_alive = False
        self._deadline = self._loop.call_later(seconds, self._fail, DeadlineExceeded())
        try:
            self._transport.write(request)
        except RuntimeError as error:  # uvloop's, for a transport that is closed already
            raise ConnectionError(CLOSED) from error
        while not self._has_status:
            await self._progress()

    @property
    def is_usable(self) -> bool:
        """Whether another request can be sent, as far as this side knows."""
        is_fresh = time.monotonic() - self.idle_since < MAX_IDLE_SECONDS
        return self.is_open and is_fresh and not self._transport.is_closing()

    async def read(self) -> bytes:
        """Return the bytes of the body that have come, at least one, or none at its end.

        Raises as `send` does.
        """
        while not (self._body or self._is_whole):
            await self._progress()
        body, self._body = self._body, b""
        if len(body) > MAX_BUFFERED_BYTES:
            self._transport.resume_reading()
        return body

    async def read_all(self) -> bytes:
        """Return the rest of the body. Raises as `send` does."""
        parts = []
        while part := await self.read():
            parts.append(part)
        return b"".join(parts)

    def finish(self) -> bool:
        """End the request. Return whether the connection can be used for another one.

        If the response is not whole, the connection is closed, which cancels the request.
        """
        self._deadline.cancel()
        self._parser = None
        self.idle_since = time.monotonic()
        if not (self._is_whole and self._keeps_alive):
            self.close()
        return self.is_open

    def close(self) -> None:
        """Close the connection at once."""
        self.is_open = False
        self._transport.abort()

    async def _progress(self) -> None:
        """Wait until more of the response has come. Raises if none will come."""
        if self._error is not None:
            raise self._error
        self._wakeup = self._loop.create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self.close()
        self._wake()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True
        connected = transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in PROBES:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)

    def data_received(self, data: bytes) -> None:
        """Parse a part of the response."""
        if self._parser is None:
            self.close()  # no response is due
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the server does not answer with HTTP: {error}"))
        if len(self._body) > MAX_BUFFERED_BYTES:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """End the request that uses the connection, if there is one."""
        if self.is_open:  # it was not this side that closed it
            self._on_lost()
        self._fail(error or ConnectionError(CLOSED))

    def on_headers_complete(self) -> None:
        """Take the status, as the parser has it."""
        assert self._parser
        self.status = self._parser.get_status_code()
        self._has_status = True

    def on_body(self, body: bytes) -> None:
        """Take a part of the body from the parser."""
        self._body += body

    def on_message_complete(self) -> None:
        """Take note that the response is whole."""
        assert self._parser
        self._is_whole = True
        self._keeps_alive = self._parser.should_keep_alive()


class Connections:
    """The connections to the server at `address` (host:port), as many as there are requests.

    `on_lost` is called when the server closes a connection or cannot be reached.
    """

    def __init__(self, address: str, on_lost: Callable[[], None]) -> None:
        self._address = address
        self._on_lost = on_lost
        self._idle: list[Connection] = []

    def close(self) -> None:
        """Close all idle connections."""
        self._on_lost = _ignore
        for connection in self._idle:
            connection.close()

    @asynccontextmanager
    async def request(
        self, method: str, path: str, seconds: float, body: bytes = b""
    ) -> AsyncIterator[Connection]:
        """Send a request with a body of JSON and yield its connection, once it has a status.

        At the end of the context the request is cancelled, unless its response has been read to
        the end. Raises `OSError` if the connection fails, and `DeadlineExceeded`.
        """
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._address}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        connection, is_reused = await self._connection()
        try:
            try:
                await connection.send(request, seconds)
            except ConnectionError:
                # The server may close an idle connection just when it is used again.
                if not is_reused:
                    raise
                connection.finish()
                connection = await self._connect()
                await connection.send(request, seconds)
            yield connection
        finally:
            if connection.finish():
                self._idle.append(connection)

    async def _connection(self) -> tuple[Connection, bool]:
        """Return the connection that was used last or a new one, and whether it was used before."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection, True
            connection.close()
        return await self._connect(), False

    async def _connect(self) -> Connection:
        host, _, port = self._address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        connecting = asyncio.get_running_loop().create_connection(
            lambda: Connection(self._lose), host.strip("[]"), int(port)
        )
        try:
            _, connection = await asyncio.wait_for(connecting, CONNECT_SECONDS)
        except asyncio.TimeoutError as error:
            self._on_lost()
            raise ConnectionError(f"no connection in {CONNECT_SECONDS:g} seconds") from error
        except OSError:
            self._on_lost()
            raise
        return connection

    def _lose(self) -> None:
        self._on_lost()


def _ignore() -> None:
    """Do nothing: nobody waits anymore."""
