"""The gateway as its own batches see it: requests that come from no connection."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import Request

from nemotron_core.openai.errors import HttpError
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import to_http_error, to_json
from nemotron_gateway.keys import Keys
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.reward_api import Handler

HEADERS = [(b"content-type", b"application/json")]


class InsideGateway:
    """Answers the requests of batches by the endpoints of clients, in the background."""

    def __init__(
        self, handlers: Mapping[str, Handler], keys: Keys, backend: Backend, metrics: Metrics
    ) -> None:
        self._handlers = handlers
        self._keys, self._backend, self._metrics = keys, backend, metrics

    async def answer(self, owner: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Return the status of a request's answer, its id and its body.

        Raises `NemotronError` if the owner's API key is no longer valid.
        """
        record = RequestRecord(
            self._metrics,
            secrets.token_hex(16),
            route=f"batch:{path}",
            key=self._keys.of_owner(owner),
        )
        try:
            record.background_slots = (await self._backend.facts()).slots
            response = await self._handlers[path](_request(path, body), record)
            record.status = response.status_code
            return record.status, record.request_id, bytes(response.body)
        except asyncio.CancelledError:
            record.status = HTTPStatus.SERVICE_UNAVAILABLE
            raise
        except Exception as error:
            http_error = to_http_error(error, record.request_id)
            record.status = http_error.status
            return record.status, record.request_id, to_json(http_error.body())
        finally:
            record.finish()

    async def identity(self) -> dict[str, str | None] | None:
        """Return what the engine is, or `None` while it generates nothing."""
        if not await self._backend.is_ready():
            return None
        try:
            return {**(await self._backend.facts()).identity}
        except HttpError:
            return None


def _request(path: str, body: bytes) -> Request:
    """Return a request that no client can end."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": HEADERS,
    }
    return Request(scope, receive)
