"""An OpenAI-compatible server over HTTP: our gateway, or any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from nemotron_core.errors import NemotronError
from nemotron_data.rows import Row
from nemotron_data.transport.protocol import Answer, Failure, Kind

CONNECT_SECONDS = 10.0
DESCRIBE_SECONDS = 10.0
LONGEST_WAIT = 60.0
"""Seconds; no server's `Retry-After` is taken for more."""


class OpenAITransport:
    """Sends each row to its own endpoint below `url`, which may end with `/v1` or not."""

    def __init__(
        self, url: str, *, key: str | None, key_variable: str, timeout: float, most: int
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._key_variable = key_variable
        self._client = httpx.AsyncClient(
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def describe(self) -> dict[str, str | None]:
        try:
            response = await self._client.get(f"{self._url}/v1/models", timeout=DESCRIBE_SECONDS)
        except httpx.HTTPError as error:
            raise Failure(Kind.LOST, f"no answer from {self._url}: {_text(error)}") from error
        self._check_key(response)
        if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise Failure(Kind.LOST, f"{self._url} answers {response.status_code}")
        try:
            model = response.json()["data"][0]
            return {"model": str(model["id"])} | {
                name: str(model[name]) if name in model else None
                for name in ("engine", "checkpoint", "template")
            }
        except (ValueError, LookupError, TypeError):
            return {}  # OpenAI-compatible enough to be asked

    async def ask(self, row: Row, body: Mapping[str, Any]) -> Answer:
        try:
            response = await self._client.post(f"{self._url}{row.endpoint}", json=body)
        except httpx.TimeoutException as error:
            if isinstance(error, httpx.ConnectTimeout):
                raise Failure(Kind.LOST, f"no connection to {self._url}") from error
            raise Failure(Kind.FAILED, "no answer in the time allowed", status=504) from error
        except httpx.TransportError as error:
            raise Failure(Kind.LOST, f"no answer from {self._url}: {_text(error)}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise Failure(Kind.REFUSED, _text(error)) from error
        self._check_key(response)
        if response.status_code != httpx.codes.OK:
            raise self._failure(response)
        try:
            content = response.json()
            if not isinstance(content["choices"], list):
                raise TypeError("choices is not a list")
        except (ValueError, LookupError, TypeError) as error:
            raise Failure(
                Kind.FAILED, f"the answer is not OpenAI's: {error}", status=response.status_code
            ) from error
        request_id = response.headers.get("x-request-id") or str(content.get("id", ""))
        return Answer(response.status_code, request_id, content)

    def _check_key(self, response: httpx.Response) -> None:
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise NemotronError(
                f"the server refuses the key ({response.status_code})",
                where=self._url,
                remedy=f"set {self._key_variable}",
            )

    def _failure(self, response: httpx.Response) -> Failure:
        status, text = response.status_code, _error_text(response)
        if status == httpx.codes.NOT_FOUND and text is None:
            raise NemotronError(
                f"there is no {response.request.url.path}",
                where=self._url,
                remedy="give the URL of an OpenAI-compatible server",
            )
        text = text or f"HTTP {status}"
        if status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
            return Failure(Kind.OVERLOADED, text, status=status, after=_after(response))
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.REQUEST_TIMEOUT:
            return Failure(Kind.FAILED, text, status=status)
        return Failure(Kind.REFUSED, text, status=status)


def _error_text(response: httpx.Response) -> str | None:
    """The message in OpenAI's error, if it is one."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return None


def _after(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None  # a date: our own backoff will do
    return min(seconds, LONGEST_WAIT) if seconds >= 0 else None


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
