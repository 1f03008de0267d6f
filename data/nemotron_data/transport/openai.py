"""The transport to an OpenAI-compatible server over HTTP: the gateway or any other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_data.rows.row import Row
from nemotron_data.transport.protocol import Answer, Failure, identity

CONNECT_SECONDS = 10.0
DESCRIBE_SECONDS = 10.0
MAX_RETRY_AFTER = 60.0
"""Largest `Retry-After` in seconds that is honoured."""
JSON_HEADERS = {"content-type": "application/json"}


class OpenAITransport:
    """Sends each row to its endpoint below `url`, which may end with `/v1`.

    Must be made inside a running event loop.
    """

    def __init__(
        self, url: str, api_key: str | None, *, key_variables: tuple[str, ...], timeout: float
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._key_variables = key_variables
        self._session = aiohttp.ClientSession(
            # How many requests run at once is the caller's decision.
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS),
            proxy=_proxy(self._url),  # aiohttp itself would look for it at each request
        )

    async def aclose(self) -> None:
        await self._session.close()

    async def describe(self) -> dict[str, str | None]:
        try:
            return identity((await self._listed_models())[0])
        except (LookupError, TypeError):
            return {}  # a server may answer completions without listing its models

    async def models(self) -> list[str]:
        try:
            return [str(model["id"]) for model in await self._listed_models()]
        except (LookupError, TypeError):
            return []

    async def _listed_models(self) -> Any:
        timeout = aiohttp.ClientTimeout(total=DESCRIBE_SECONDS)
        try:
            async with self._session.get(f"{self._url}/v1/models", timeout=timeout) as response:
                status, data = response.status, await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise self._unreachable(error) from error
        self._check_key(status)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise Failure(ErrorKind.UNREACHABLE, f"{self._url} answers {status}")
        try:
            return json.loads(data)["data"]
        except (ValueError, LookupError, TypeError):
            return []

    async def send(self, row: Row, body: Mapping[str, Any]) -> Answer:
        try:
            async with self._session.post(
                self._url + row.endpoint, data=encode(body), headers=JSON_HEADERS
            ) as response:
                status, headers, data = response.status, response.headers, await response.read()
        except (aiohttp.ConnectionTimeoutError, aiohttp.ServerDisconnectedError) as error:
            raise self._unreachable(error) from error
        except asyncio.TimeoutError as error:
            kind = ErrorKind.TIMED_OUT
            raise Failure(kind, "no answer in the time allowed", status=kind.codes.http) from error
        except aiohttp.InvalidURL as error:
            raise Failure(ErrorKind.REFUSED, _text(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error
        if status != HTTPStatus.OK:
            self._check_key(status)
            raise self._failure(row, status, headers, data)
        ignored = headers.get("x-ignored-keys")
        names = [unquote(name) for name in ignored.split(", ")] if ignored else ()
        return Answer(status, headers.get("x-request-id"), data, names)

    def _unreachable(self, error: BaseException) -> Failure:
        return Failure(ErrorKind.UNREACHABLE, f"no answer from {self._url}: {_text(error)}")

    def _check_key(self, status: int) -> None:
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise NemotronError(
                f"the server refuses the key ({status})",
                where=self._url,
                remedy=f"set {' or '.join(self._key_variables)}",
            )

    def _failure(self, row: Row, status: int, headers: Mapping[str, str], data: bytes) -> Failure:
        text = _error_message(data)
        if status == HTTPStatus.NOT_FOUND and text is None:
            raise NemotronError(
                f"there is no {row.endpoint}",
                where=self._url,
                remedy="give the URL of an OpenAI-compatible server",
            )
        kind = ErrorKind.REFUSED
        if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            kind = ErrorKind.OVERLOADED
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
            kind = ErrorKind.FAILED
        text = text or f"HTTP {status}"
        return Failure(kind, text, status=status, retry_after=_retry_after(headers))


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a URL."""
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def encode(body: Mapping[str, Any]) -> bytes:
    """Return a request body as JSON."""
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        return json.dumps(body).encode()


def _error_message(data: bytes) -> str | None:
    """Return the message of an error in OpenAI's form, or `None` if the body has another form."""
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        return None  # no header, or a date: the caller's own backoff is enough
    return min(seconds, MAX_RETRY_AFTER) if seconds >= 0 else None


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
