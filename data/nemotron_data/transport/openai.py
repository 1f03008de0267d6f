"""The transport to an OpenAI-compatible server over HTTP: the gateway or any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_data.rows import Row
from nemotron_data.transport.protocol import Answer, Failure

CONNECT_SECONDS = 10.0
DESCRIBE_SECONDS = 10.0
MAX_RETRY_AFTER = 60.0
"""Largest `Retry-After` in seconds that is honoured."""


class OpenAITransport:
    """Sends each row to its endpoint below `url`, which may end with `/v1`."""

    def __init__(
        self, url: str, api_key: str | None, *, key_variable: str, timeout: float, connections: int
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._key_variable = key_variable
        self._client = httpx.AsyncClient(
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def describe(self) -> dict[str, str | None]:
        try:
            response = await self._client.get(f"{self._url}/v1/models", timeout=DESCRIBE_SECONDS)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        self._check_key(response)
        if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise Failure(ErrorKind.UNREACHABLE, f"{self._url} answers {response.status_code}")
        try:
            model = response.json()["data"][0]
            return {"model": str(model["id"])} | {
                name: str(model[name]) if name in model else None
                for name in ("engine", "checkpoint", "template")
            }
        except (ValueError, LookupError, TypeError):
            return {}  # a server may answer completions without listing its models

    async def send(self, row: Row, body: Mapping[str, Any]) -> Answer:
        try:
            response = await self._client.post(f"{self._url}{row.endpoint}", json=body)
        except httpx.ConnectTimeout as error:
            raise Failure(ErrorKind.UNREACHABLE, f"no connection to {self._url}") from error
        except httpx.TimeoutException as error:
            kind = ErrorKind.TIMED_OUT
            raise Failure(kind, "no answer in the time allowed", status=kind.codes.http) from error
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        except (httpx.HTTPError, ValueError) as error:
            raise Failure(ErrorKind.REFUSED, _text(error)) from error
        self._check_key(response)
        if response.status_code != httpx.codes.OK:
            raise self._failure(response)
        try:
            content = response.json()
            if not isinstance(content["choices"], list):
                raise TypeError("choices is not a list")
        except (ValueError, LookupError, TypeError) as error:
            text = f"the answer is not OpenAI's: {error}"
            raise Failure(ErrorKind.FAILED, text, status=response.status_code) from error
        request_id = response.headers.get("x-request-id") or str(content.get("id", ""))
        return Answer(response.status_code, request_id, content)

    def _unreachable(self, error: httpx.HTTPError) -> Failure:
        return Failure(ErrorKind.UNREACHABLE, f"no answer from {self._url}: {_text(error)}")

    def _check_key(self, response: httpx.Response) -> None:
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise NemotronError(
                f"the server refuses the key ({response.status_code})",
                where=self._url,
                remedy=f"set {self._key_variable}",
            )

    def _failure(self, response: httpx.Response) -> Failure:
        status, text = response.status_code, _error_message(response)
        if status == httpx.codes.NOT_FOUND and text is None:
            raise NemotronError(
                f"there is no {response.request.url.path}",
                where=self._url,
                remedy="give the URL of an OpenAI-compatible server",
            )
        kind = ErrorKind.REFUSED
        if status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
            kind = ErrorKind.OVERLOADED
        elif status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.REQUEST_TIMEOUT:
            kind = ErrorKind.FAILED
        text = text or f"HTTP {status}"
        return Failure(kind, text, status=status, retry_after=_retry_after(response))


def _error_message(response: httpx.Response) -> str | None:
    """Return the message of an error in OpenAI's form, or `None` if the body has another form."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return None


def _retry_after(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None  # no header, or a date: the caller's own backoff is enough
    return min(seconds, MAX_RETRY_AFTER) if seconds >= 0 else None


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
