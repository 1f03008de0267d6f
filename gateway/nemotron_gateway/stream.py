"""A streamed answer: server-sent events, one or more for each piece that the engine sends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from json.encoder import encode_basestring

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from nemotron_core.errors import CLIENT_CLOSED_REQUEST
from nemotron_core.generation import Piece
from nemotron_core.openai.answer import Answer
from nemotron_gateway.json_response import to_http_error, to_json
from nemotron_gateway.request import while_connected
from nemotron_gateway.request_record import RequestRecord

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The second one keeps nginx from holding events back."""


class EventStream(StreamingResponse):
    """The response to a request that streams. A client's disconnect ends it at once.

    Nothing is sent before the first events, so a failure before them is raised and has its own
    status. A failure after them is the last event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], record: RequestRecord) -> None:
        super().__init__(events, headers=HEADERS)
        self._events = events
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. Returns after the generator of events is closed."""
        async with aclosing(self._events):
            try:
                await while_connected(receive, self._send_events(send, scope["send_to_client"]))
            except ClientDisconnect:
                self._record.status = CLIENT_CLOSED_REQUEST

    async def _send_events(self, send: Send, send_to_client: Send) -> None:
        """Send the headers with the first events, then the other events as they come.

        Starlette's middleware is about headers only, so `send_to_client` leaves it out.
        """
        events = await anext(self._events)
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        try:
            await send_to_client(_body(events))
            async for events in self._events:
                await send_to_client(_body(events))
        except Exception as error:
            http_error = to_http_error(error, self._record.request_id)
            self._record.status = http_error.status
            last_events = to_events([http_error.body()]) + DONE
            await send_to_client(_body(last_events, more=False))
            if http_error is not error:
                raise  # so that it is logged
        else:
            await send_to_client(_body(DONE, more=False))


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
    before, after = answer.chunk_template()
    chunks = answer.opening(count)
    try:
        async with aclosing(pieces):
            async for index, piece in pieces:
                record.count_piece()
                answer.usage.add(index, piece)
                if count == 1 and not (chunks or piece.log_probs or piece.finish_reason):
                    text = encode_basestring(piece.text)
                    yield f"data: {before}{text}{after}\n\n".encode(errors="replace")
                else:
                    yield to_events(chunks + answer.chunks(index, piece))
                    chunks = []
        yield to_events(answer.closing())
    finally:
        record.count_tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens)


def to_events(contents: Sequence[object]) -> bytes:
    """Return one server-sent event for each object."""
    return b"".join(b"data: " + to_json(content) + b"\n\n" for content in contents)
