"""`POST /v1/responses`: OpenAI's Responses API for text, without a store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.generation import Piece
from nemotron_core.openai.errors import HttpError
from nemotron_core.openai.responses import ResponseAnswer, ResponsesRequest
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import JsonResponse, to_json
from nemotron_gateway.models import Models
from nemotron_gateway.openai_api import OpenAI
from nemotron_gateway.request import read_body, while_connected
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings
from nemotron_gateway.stream import EventStream


class Responses:
    """The endpoint, which is a chat completion in another form."""

    def __init__(
        self, settings: GatewaySettings, backend: Backend, models: Models, openai: OpenAI
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._models = models
        self._openai = openai

    async def create(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/responses`."""
        body = await read_body(request, record, self._settings, ResponsesRequest)
        model = await self._models.find(body.model)
        pieces = await self._openai.chat_pieces(body.chat_request(), record)
        answer = ResponseAnswer(model.name, body)
        if body.stream:

            def to_failure(error: HttpError) -> bytes:
                return _to_events([answer.failure(error.code, error.message)])

            heartbeat = self._settings.timeouts.heartbeat
            events = _stream(answer, pieces, record)
            return EventStream(events, record, heartbeat, to_failure, end=b"")
        await while_connected(request.receive, _collect(answer, pieces))
        _count(answer, record)
        return JsonResponse(answer.whole())


async def _collect(answer: ResponseAnswer, pieces: AsyncGenerator[tuple[int, Piece], None]) -> None:
    async with aclosing(pieces):
        async for _index, piece in pieces:
            answer.add(piece)


async def _stream(
    answer: ResponseAnswer,
    pieces: AsyncGenerator[tuple[int, Piece], None],
    record: RequestRecord,
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a streamed response."""
    has_begun = False
    try:
        async with aclosing(pieces):
            async for _index, piece in pieces:
                record.count_piece()
                events = [] if has_begun else list(answer.opening())
                has_begun = True
                answer.add(piece)
                if piece.text:
                    events.append(answer.delta(piece.text))
                yield _to_events(events)
        yield _to_events(answer.closing())
    finally:
        _count(answer, record)


def _count(answer: ResponseAnswer, record: RequestRecord) -> None:
    record.count_tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens)


def _to_events(contents: Iterable[dict[str, Any]]) -> bytes:
    """Return one server-sent event for each object, with its type as the event's name."""
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (content["type"].encode(), to_json(content))
        for content in contents
    )
