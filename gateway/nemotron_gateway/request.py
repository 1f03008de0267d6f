"""A request's JSON body, read within bounds, and work that a client's disconnect cancels."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_core.openai.keys import OpenModel
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings

Body = TypeVar("Body", bound=OpenModel)
Result = TypeVar("Result")
SHORT_BYTES = 1 << 15
"""What has up to so many bytes is read, tokenized or written in less than five milliseconds."""
MAX_NAMES, MAX_NAME = 20, 100
"""Number of unknown keys that the log and the response name, and of characters of each."""
HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
PAIR = re.compile(rb"\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w")


async def read_json(
    request: Request,
    record: RequestRecord,
    settings: GatewaySettings,
    parse: Callable[[Any], Result],
) -> Result:
    """Return what `parse` makes of the JSON of a request's body.

    Other requests go on while a large body is parsed. Raises `HttpError` if the body has another
    type, is too large, comes too slowly or is not JSON, and the errors of `parse`.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        # This also keeps other sites' pages from sending requests through a visitor's browser.
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json")
    try:
        data = await asyncio.wait_for(
            _read(request, settings.limits.body_bytes), settings.timeouts.body
        )
    except asyncio.TimeoutError as error:
        # Otherwise the rest of the body would keep the connection.
        raise HttpError(
            HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time", closes=True
        ) from error

    def read() -> Result:
        content = _decode(data)
        if settings.log_prompts:
            record.body = content
        return parse(content)

    return await compute(read, size=len(data))


def _decode(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        is_half = HALF_PAIR.search(PAIR.sub(b"", data))
        why = "half of a surrogate pair" if is_half else error
        raise bad_request(f"the body is not JSON: {why}") from error


async def read_body(
    request: Request, record: RequestRecord, settings: GatewaySettings, body_type: type[Body]
) -> Body:
    """Return a request's body as an object of that type.

    Unknown keys are noted in the record, or refused if the settings say so. Raises `HttpError` that
    names the wrong key, or the one whose effect this model cannot have.
    """

    def parse(content: Any) -> Body:
        body = _validate(content, body_type)
        names = [name[:MAX_NAME] for name in body.unknown_keys()[:MAX_NAMES]]
        if names and settings.strict_keys:
            raise bad_request(f"there is no key {names[0]!r}: leave it out", names[0])
        record.ignored_keys = names
        body.check()
        return body

    return await read_json(request, record, settings, parse)


def _validate(content: Any, body_type: type[Body]) -> Body:
    try:
        return body_type.model_validate(content)
    except ValidationError as error:
        # Of the members of a union, the one that fits best fails deepest inside.
        first = max(error.errors(), key=lambda entry: len(entry["loc"]))
        key = ".".join(str(part) for part in first["loc"] if not _names_a_type(part))
        message = first["msg"].removeprefix("Value error, ")
        raise bad_request(f"{key or 'body'}: {message}", key or None) from error


async def compute(work: Callable[[], Result], *, size: int) -> Result:
    """Return what `work` returns, which takes milliseconds if `size`, in bytes, is large."""
    return await asyncio.to_thread(work) if size > SHORT_BYTES else work()


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`, which is cancelled as soon as the client disconnects.

    The request's body must have been read. Raises `ClientDisconnect` after the cancelled work has
    ended. Starlette's own watch over a stream is not enough: it does not cover the time before the
    first piece, and Starlette leaves it out if the server announces ASGI 2.4.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        disconnect.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request, limit: int) -> bytes:
    too_large = HttpError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {limit} bytes"
    )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > limit:
            raise too_large
    return bytes(data)


def _names_a_type(part: object) -> bool:
    """Return whether a part of an error's place is the member of a union that Pydantic tried."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool"))
