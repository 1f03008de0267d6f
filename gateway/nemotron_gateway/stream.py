"""A streamed answer: server-sent events, one or more for each piece that the engine sends."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from nemotron_core.errors import CLIENT_CLOSED_REQUEST
from nemotron_core.generation import Piece
from nemotron_core.openai.answer import Answer
from nemotron_gateway.json_response import from_exception, to_json
from nemotron_gateway.request import while_connected
from nemotron_gateway.request_record import RequestRecord

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The second one keeps nginx from holding events back."""


class EventStream(StreamingResponse):
    """A response of server-sent events, which a client's disconnect ends at once."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], record: RequestRecord) -> None:
        super().__init__(events, headers=HEADERS)
        self._events = events
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. Returns after the generator of events is closed."""
        async with aclosing(self._events):
            try:
                await while_connected(receive, self.stream_response(send))
            except ClientDisconnect:
                self._record.status = CLIENT_CLOSED_REQUEST


async def stream_answer(
    answer: Answer,
    pieces: AsyncGenerator[tuple[int, Piece], None],
    count: int,
    record: RequestRecord,
) -> EventStream:
    """Return the streamed answer of `count` choices once its first piece has come.

    Until then nothing is sent, so a failure before it is raised and has its own status. A failure
    after it is the last event.
    """
    events = _events(answer, pieces, count, record)
    await anext(events)
    return EventStream(events, record)


async def _events(
    answer: Answer,
    pieces: AsyncGenerator[tuple[int, Piece], None],
    count: int,
    record: RequestRecord,
) -> AsyncGenerator[bytes, None]:
    """Yield nothing (`b""`) when the first piece has come, then the events for each piece."""
    before, after = answer.chunk_template()
    has_begun = False
    try:
        async with aclosing(pieces):
            async for index, piece in pieces:
                record.count_piece()
                answer.usage.add(index, piece)
                if not has_begun:
                    has_begun = True
                    yield b""
                    for chunk in answer.opening(count):
                        yield _event(chunk)
                if count == 1 and not piece.log_probs and not piece.finish_reason:
                    text = json.dumps(piece.text, ensure_ascii=False)
                    yield f"data: {before}{text}{after}\n\n".encode(errors="replace")
                    continue
                for chunk in answer.chunks(index, piece):
                    yield _event(chunk)
        for chunk in answer.closing():
            yield _event(chunk)
    except Exception as error:
        if not has_begun:
            raise
        http_error = from_exception(error, record.request_id)
        record.status = http_error.status
        yield _event(http_error.body())
    finally:
        record.count_tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens)
    yield DONE


def _event(content: object) -> bytes:
    return b"data: " + to_json(content) + b"\n\n"
