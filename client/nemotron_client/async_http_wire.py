"""Triton's HTTP for the asynchronous client: the endpoint `generate_stream`.

A request that is not streamed uses it too, and its pieces are joined here: Triton never notices
that a client of `generate` has disconnected.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from nemotron_client.channel import Connection, checked_headers
from nemotron_client.exceptions import (
    ClientError,
    ConnectionFailed,
    RequestRefused,
    RequestTimeout,
    ServerFailed,
    from_http_status,
)
from nemotron_client.exchange import CLOSED, Exchange, PieceTimeout
from nemotron_client.request import request_parameters
from nemotron_client.response import Values
from nemotron_client.settings import Timeouts
from nemotron_core.generation import Piece, join_pieces, request_inputs

EVENT_PREFIX = b"data: "
EVENT_END = b"\n\n"
NOT_TRITON = "no_such_route"
"""Code of the gateway's error for an endpoint that it does not have."""

T = TypeVar("T")


class AsyncHttpWire:
    """Connections to Triton's HTTP, of one event loop."""

    def __init__(self, connection: Connection) -> None:
        address = connection.address
        self._url = connection.url
        self._timeouts = connection.timeouts
        self._base = f"{'https' if address.is_secure else 'http'}://{address.target}/v2/models"
        self._proxy = _environments_proxy(self._base)
        self._headers = connection.headers
        self._check_size = connection.check_size
        self._ssl = connection.ssl_context() if address.is_secure else True
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def aclose(self) -> None:
        """Close the connections, which ends all their requests."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        """Return the session, which belongs to the running event loop."""
        if self._closed:
            raise ConnectionFailed(CLOSED)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect),
            )
        return self._session

    async def is_ready(self, model: str) -> bool:
        """Return whether the server answers and the model accepts requests."""
        try:
            status, _content = await self._get(f"{quote(model, safe='')}/ready")
        except ClientError:
            return False
        return status == HTTPStatus.OK

    async def parameters(self, model: str) -> dict[str, str]:
        """Return the `parameters` of a model's configuration. Raises `ClientError`."""
        status, content = await self._get(f"{quote(model, safe='')}/config")
        if status != HTTPStatus.OK:
            raise self._refusal(status, content)
        try:
            parameters = json.loads(content)["parameters"]
            return {name: value["string_value"] for name, value in parameters.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerFailed(f"{self._url} sent no configuration of a model") from error

    async def _get(self, path: str) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=self._timeouts.connect)
        try:
            url = f"{self._base}/{path}"
            request = self._open().get(url, timeout=timeout, proxy=self._proxy)
            async with request as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise self._failure(error) from error

    async def pieces(self, exchange: Exchange) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of an answer. Closing the generator early stops the request."""
        parts: dict[int, list[Piece]] = {}
        response = None
        deadlines = _Deadlines(self._timeouts)
        body = request_body(exchange)
        self._check_size("request", len(body))
        headers = checked_headers({"content-type": "application/json"}, exchange.options.headers)
        url = f"{self._base}/{quote(exchange.model, safe='')}/generate_stream"
        try:
            request = self._open().post(url, data=body, headers=headers, proxy=self._proxy)
            response = await deadlines.wait(request)
            if response.status != HTTPStatus.OK:
                raise self._refusal(response.status, await deadlines.wait(response.read()))
            data, rest = response.content.iter_any(), b""
            while block := await deadlines.wait(anext(data, b"")):
                *events, rest = (rest + block).split(EVENT_END)
                self._check_size("response", max(map(len, (*events, rest))))
                for event in events:
                    outputs = _read_event(event, exchange)
                    for piece in exchange.read(outputs) if outputs else ():
                        deadlines.piece.stop()
                        if exchange.stream:
                            yield piece
                        else:
                            parts.setdefault(piece.sequence_index, []).append(piece)
            exchange.end()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise exchange.failure(self._failure(error)) from error
        except ClientError as error:
            raise exchange.failure(error) from None
        except RuntimeError as error:  # aiohttp's for a connection that this client has closed
            if not self._closed:
                raise
            raise exchange.failure(ConnectionFailed(CLOSED)) from error
        finally:
            if response is not None:
                response.close()  # an answer that was read to its end has left its connection
        for _index, pieces in sorted(parts.items()):
            yield join_pieces(pieces)

    def _failure(self, error: Exception) -> ClientError:
        if self._closed:
            return ConnectionFailed(CLOSED)
        is_connection = isinstance(error, aiohttp.ClientConnectionError)  # a wrong certificate too
        if isinstance(error, ValueError) and not is_connection:
            return RequestRefused(f"{self._url}: {error}")  # a URL or a header that HTTP has not
        reason = " ".join(str(error).split()) or type(error).__name__
        return ConnectionFailed(f"no answer from {self._url}: {reason}")

    def _refusal(self, status: int, content: bytes) -> ClientError:
        """Return the exception for a response that is not 200."""
        text = content.removeprefix(EVENT_PREFIX).decode(errors="replace")
        error: Any = text
        with suppress(ValueError, KeyError, TypeError):
            error = json.loads(text)["error"] or text
        if isinstance(error, Mapping):
            if error.get("code") == NOT_TRITON:
                return RequestRefused(
                    f"{self._url} is the gateway, which has OpenAI's API: use Triton's address "
                    "here, or OpenAI's library there"
                )
            error = error.get("message") or text
        return from_http_status(status, str(error), self._url)


class _Deadlines:
    """Waits no longer than the timeouts allow, and says which of them is over."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._total = timeouts.total
        self._end = math.inf if timeouts.total is None else time.monotonic() + timeouts.total
        self.piece = PieceTimeout(timeouts)

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Return the result. Raises `RequestTimeout` if it is not there in time."""
        now = time.monotonic()
        if self.piece.due == math.inf:
            self.piece.start(now)
        due = min(self.piece.due, self._end)
        if due == math.inf:
            return await awaitable
        try:
            return await asyncio.wait_for(awaitable, max(0, due - now))
        except aiohttp.ServerTimeoutError:
            raise  # no connection was made in time
        except asyncio.TimeoutError:
            if self.piece.is_over(time.monotonic()):
                raise RequestTimeout(self.piece.message) from None
            raise RequestTimeout(f"no whole answer in {self._total} seconds") from None


def _environments_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a URL, if any.

    aiohttp's `trust_env` would also send the user and password that a `.netrc` has for the server,
    and refuse an `api_key` beside them.
    """
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def request_body(exchange: Exchange) -> bytes:
    """Return the JSON of a request. Raises `RequestRefused` if it does not fit on the wire."""
    try:
        inputs = request_inputs(exchange.prompt, exchange.generation, stream=True)
        for name, values in inputs.items():
            if any(isinstance(value, float) and not math.isfinite(value) for value in values):
                raise RequestRefused(f"{name} is {values[0]}, which JSON has not")
        body: dict[str, Any] = {"id": exchange.request_id, "heartbeat": True}
        body |= request_parameters(exchange.options)
        body |= {name: values[0] if len(values) == 1 else values for name, values in inputs.items()}
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise RequestRefused(str(error)) from error


def _read_event(data: bytes, exchange: Exchange) -> dict[str, Values]:
    """Return the outputs in an event; none if it is a heartbeat. Raises the error that it has.

    Triton writes an output of one element as that element, any other as a list.
    """
    try:
        event = json.loads(data.removeprefix(EVENT_PREFIX))
        error = event.get("error")
    except (ValueError, AttributeError, RecursionError) as failure:
        raise ServerFailed(f"the server sent an event that is no piece: {failure}") from failure
    if error is not None:
        raise exchange.error(str(error))
    outputs: dict[str, Values] = {}
    for name, value in event.items():
        outputs[name] = tuple(value) if isinstance(value, list) else (value,)
    is_heartbeat = not (
        any(outputs.get("text_output", ()))
        or outputs.get("finish_reason")
        or outputs.get("output_token_ids", ("none are sent",))  # by the classic ensemble
    )
    if is_heartbeat:
        return {}
    return outputs
