"""One HTTP request: its body read within bounds, its answer whole or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.record import Record
from nemotron_gateway.settings import GatewaySettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Model = TypeVar("Model", bound=BaseModel)

DONE = b"data: [DONE]\n\n"


class Gone(Exception):
    """The client has hung up."""


class Call:
    """What an endpoint works with."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        settings: GatewaySettings,
        metrics: Metrics,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._settings = settings
        self._metrics = metrics
        self.record: Record = scope["record"]
        self._started = self._streams = False
        self._last_piece: float | None = None

    def header(self, name: str) -> str:
        """The first of that name (lower case), or nothing."""
        for key, value in self._scope["headers"]:
            if key == name.encode():
                return str(value.decode("latin-1"))
        return ""

    def path_parameter(self, name: str) -> str:
        return str(self._scope["path_params"][name])

    async def body(self) -> Any:
        """The JSON in it. HttpError: another type, too large, too slow, no JSON."""
        kind = self.header("content-type").split(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps other sites' pages from asking through their visitors' browsers.
            raise HttpError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json"
            )
        try:
            data = await asyncio.wait_for(self._read(), self._settings.timeouts.body)
        except asyncio.TimeoutError as error:
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time") from error
        try:
            found = json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise bad_request(f"the body is not JSON: {error}") from error
        if self._settings.log_prompts:
            self.record.body = found
        return found

    async def request(self, kind: type[Model]) -> Model:
        """The body as a request of that kind; HttpError names the key that is wrong."""
        try:
            return kind.model_validate(await self.body())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"] if not _names_a_type(part))
            if first["type"] == "extra_forbidden":
                raise bad_request(f"there is no key {key!r}: leave it out", key) from error
            raise bad_request(f"{key or 'body'}: {first['msg']}", key or None) from error

    async def _read(self) -> bytes:
        most = self._settings.limits.body_bytes
        too_large = HttpError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {most} bytes"
        )
        announced = self.header("content-length")
        if announced.isdigit() and int(announced) > most:
            raise too_large
        data = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            data += message.get("body", b"")
            if len(data) > most:
                raise too_large
            if not message.get("more_body", False):
                return bytes(data)

    async def until_gone(self) -> None:
        """Return when the client hangs up; the body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def respond(
        self, content: object, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
    ) -> None:
        """The whole answer, as JSON."""
        data = json.dumps(content, ensure_ascii=False).encode(errors="replace")
        await self.send_bytes(data, "application/json", status, headers)

    async def send_bytes(
        self,
        data: bytes,
        kind: str,
        status: int = HTTPStatus.OK,
        headers: dict[str, str] | None = None,
    ) -> None:
        await self._start(status, kind, headers or {}, len(data))
        await self._send({"type": "http.response.body", "body": data})

    async def fail(self, error: HttpError) -> None:
        """The answer is an error; inside a stream it is the last event."""
        if self._streams:
            self.record.status = error.status
            await self.event(error.body())
            await self.end_stream()
        elif not self._started:
            await self.respond(error.body(), error.status, error.headers)

    async def start_stream(self) -> None:
        self._streams = True
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        await self._start(HTTPStatus.OK, "text/event-stream; charset=utf-8", headers)

    async def event(self, content: object) -> None:
        await self.event_text(json.dumps(content, ensure_ascii=False))

    async def event_text(self, text: str) -> None:
        data = b"data: " + text.encode(errors="replace") + b"\n\n"
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self) -> None:
        await self._send({"type": "http.response.body", "body": DONE})

    def count_piece(self) -> None:
        """A piece of a streamed answer has come: the times between them."""
        now = time.monotonic()
        if self._last_piece is None:
            self.record.first_token_seconds = now - self.record.began
            self._metrics.first_token.observe(self.record.first_token_seconds)
        else:
            self._metrics.between_tokens.observe(now - self._last_piece)
        self._last_piece = now

    def count_tokens(self, prompt: int, generated: int) -> None:
        """Of one whole request."""
        self.record.prompt_tokens += prompt
        self.record.generated_tokens += generated
        self._metrics.prompt_tokens.inc(prompt)
        self._metrics.generated_tokens.inc(generated)

    async def _start(
        self, status: int, kind: str, headers: dict[str, str], length: int | None = None
    ) -> None:
        self._started = True
        sent = [(b"content-type", kind.encode())]
        if length is not None:
            sent.append((b"content-length", str(length).encode()))
        sent += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": int(status), "headers": sent})


async def while_connected(call: Call, work: Awaitable[None]) -> None:
    """Do the work, or drop it when the client hangs up (then `Gone`)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(call.until_gone())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _names_a_type(part: object) -> bool:
    """Pydantic puts the member of a union that it tried between the keys."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "TextPart"))
