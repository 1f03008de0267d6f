"""A streamed answer: server-sent events, one or more for each piece that the engine sends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from json.encoder import encode_basestring

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from nemotron_core.errors import CLIENT_CLOSED_REQUEST
from nemotron_core.generation import Piece
from nemotron_core.openai.answer import Answer
from nemotron_core.openai.errors import HttpError
from nemotron_gateway.json_response import to_http_error, to_json
from nemotron_gateway.request import while_connected
from nemotron_gateway.request_record import RequestRecord

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The second one keeps nginx from holding events back."""
HEARTBEAT = b": the model is at work\n\n"
"""A comment, which every reader of such streams leaves out."""


def to_events(contents: Sequence[object]) -> bytes:
    """Return one server-sent event for each object."""
    return b"".join(b"data: " + to_json(content) + b"\n\n" for content in contents)


def failure_event(error: HttpError) -> bytes:
    """Return the event for an error in the middle of an answer."""
    return to_events([error.body()])


class EventStream(StreamingResponse):
    """The response to a request that streams. A client's disconnect ends it at once.

    Nothing is sent before the first events, so a failure before them is raised and has its own
    status. Only if they take longer than `heartbeat` seconds, and whenever later events do, a
    comment is sent, so that nobody on the way takes the connection for dead. A failure after that
    is the last event; `to_failure` writes it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        record: RequestRecord,
        heartbeat: float,
        to_failure: Callable[[HttpError], bytes] = failure_event,
        end: bytes = DONE,
    ) -> None:
        super().__init__(events, headers=HEADERS)
        self._events = events
        self._record = record
        self._heartbeat = heartbeat
        self._to_failure = to_failure
        self._end = end
        self._has_begun = False
        self._sent_seconds = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. Returns after the generator of events is closed."""
        # Starlette's middleware is about headers only, so what follows them leaves it out.
        self._send, self._send_body = send, scope["send_to_client"]
        heart = asyncio.ensure_future(self._beat())
        async with aclosing(self._events):
            try:
                await while_connected(receive, self._send_events())
            except ClientDisconnect:
                self._record.status = CLIENT_CLOSED_REQUEST
            finally:
                heart.cancel()

    async def _send_events(self) -> None:
        """Send the headers with the first events, then the other events as they come."""
        try:
            async for events in self._events:
                self._sent_seconds = time.monotonic()
                if not self._has_begun:
                    await self._begin()
                await self._send_body(_body(events))
        except Exception as error:
            if not self._has_begun:
                raise
            http_error = to_http_error(error, self._record.request_id)
            self._record.status = http_error.status
            last_events = self._to_failure(http_error) + self._end
            await self._send_body(_body(last_events, more=False))
            if http_error is not error:
                raise  # so that it is logged
        else:
            await self._send_body(_body(self._end, more=False))

    async def _begin(self) -> None:
        self._has_begun = True
        await self._send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )

    async def _beat(self) -> None:
        """Send a comment whenever nothing was sent for a while."""
        while True:
            rest = self._sent_seconds + self._heartbeat - time.monotonic()
            if rest > 0:
                await asyncio.sleep(rest)
                continue
            self._sent_seconds = time.monotonic()
            if not self._has_begun:
                await self._begin()
            await self._send_body(_body(HEARTBEAT))


def _body(data: bytes, *, more: bool = True) -> Message:
    """Return the ASGI message with a part of a response's body."""
    return {"type": "http.response.body", "body": data, "more_body": more}


async def stream_answer(
    answer: Answer,
    pieces: AsyncGenerator[tuple[int, Piece], None],
    count: int,
    record: RequestRecord,
) -> AsyncGenerator[bytes, None]:
    """Yield the events for each piece of an answer of `count` choices."""
    template = answer.chunk_template() if count == 1 else None
    chunks = answer.opening(count)
    try:
        async with aclosing(pieces):
            async for index, piece in pieces:
                record.count_piece()
                answer.usage.add(index, piece)
                if template and not (chunks or piece.log_probs or piece.finish_reason):
                    before, after = template
                    text = encode_basestring(piece.text)
                    yield f"data: {before}{text}{after}\n\n".encode(errors="replace")
                else:
                    yield to_events(chunks + answer.chunks(index, piece))
                    chunks = []
        yield to_events(answer.closing())
    finally:
        record.count_tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens)
