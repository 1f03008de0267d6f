"""The transport of a batch's job to the gateway that it is a part of.

A job has an event loop of its own, in a thread of its own. Its requests are answered in the
gateway's loop, by the same endpoints as those of clients.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

from nemotron_core.errors import ErrorKind
from nemotron_data.batch.result_line import encode
from nemotron_data.rows.row import Row
from nemotron_data.transport.protocol import Answer, Failure

Result = TypeVar("Result")
KINDS: dict[int, ErrorKind] = {
    HTTPStatus.TOO_MANY_REQUESTS: ErrorKind.OVERLOADED,
    HTTPStatus.SERVICE_UNAVAILABLE: ErrorKind.UNREACHABLE,
    HTTPStatus.GATEWAY_TIMEOUT: ErrorKind.TIMED_OUT,
    HTTPStatus.NOT_IMPLEMENTED: ErrorKind.REFUSED,
}
"""Kinds of failures by status; any other one above 500 is `FAILED`, and below it `REFUSED`."""
ENDING = "the gateway shuts down"


class Inside(Protocol):
    """The gateway, as a batch sees it. Its methods run in the gateway's event loop."""

    async def answer(self, owner: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Return the status of a request's answer, its id and its body."""
        ...

    async def identity(self) -> dict[str, str | None] | None:
        """Return what the engine is, or `None` while it does not answer."""
        ...


class InsideTransport:
    """Sends the rows of a batch to the gateway, on behalf of the batch's owner."""

    def __init__(self, inside: Inside, owner: str, loop: asyncio.AbstractEventLoop) -> None:
        self._inside, self._owner, self._loop = inside, owner, loop

    async def describe(self) -> dict[str, str | None]:
        identity = await self._call(self._inside.identity())
        if identity is None:
            raise Failure(ErrorKind.UNREACHABLE, "the engine does not answer")
        return identity

    async def models(self) -> list[str]:
        return []  # a wrong name is refused with those that there are

    async def send(self, row: Row, body: Mapping[str, Any]) -> Answer:
        status, request_id, data = await self._call(
            self._inside.answer(self._owner, row.endpoint, encode(body))
        )
        if status == HTTPStatus.OK:
            return Answer(status, request_id, data)
        is_own_fault = status < HTTPStatus.INTERNAL_SERVER_ERROR
        kind = KINDS.get(status, ErrorKind.REFUSED if is_own_fault else ErrorKind.FAILED)
        raise Failure(kind, json.loads(data)["error"]["message"], status=status, body=data)

    async def aclose(self) -> None:
        """Do nothing: the gateway's connections are its own."""

    async def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the gateway's loop; if this one is cancelled, that one is too."""
        guarded = _not_cancelled(work)
        try:
            future = asyncio.run_coroutine_threadsafe(guarded, self._loop)
        except RuntimeError as error:  # the loop is closed
            guarded.close()
            work.close()
            raise Failure(ErrorKind.UNREACHABLE, ENDING) from error
        result = await asyncio.wrap_future(future)
        if isinstance(result, Failure):
            raise result
        return result


async def _not_cancelled(work: Coroutine[Any, Any, Result]) -> Result | Failure:
    """Return a result. That the gateway's loop ends is a failure, so that no row gets lost."""
    try:
        return await work
    except asyncio.CancelledError:
        return Failure(ErrorKind.UNREACHABLE, ENDING)
