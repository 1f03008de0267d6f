"""Triton over gRPC, asked and answering in OpenAI's words, so that rows are the same for both."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from nemotron_client import (
    AsyncClient,
    ClientError,
    ConnectionFailed,
    Generation,
    Piece,
    RequestRefused,
    RequestTimeout,
    Retries,
    ServerFailed,
    ServerOverloaded,
    Timeouts,
    Tls,
)
from nemotron_core.generation import Prompt
from nemotron_core.openai.errors import HttpError
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_data.rows import CHAT, Row
from nemotron_data.transport.protocol import MAX_TOKENS, MODEL, Answer, Failure, Kind

IDENTITY_MODEL = "tensorrt_llm_bls"
"""Whose parameters tell what answers; it is there on every lane."""
DESCRIBED = ("engine", "checkpoint", "template")
_KINDS: dict[type[ClientError], tuple[Kind, int]] = {
    RequestRefused: (Kind.REFUSED, 400),
    ServerOverloaded: (Kind.OVERLOADED, 429),
    RequestTimeout: (Kind.FAILED, 504),
    ConnectionFailed: (Kind.LOST, 503),
    ServerFailed: (Kind.FAILED, 500),
}


@dataclass(frozen=True)
class _Question:
    prompt: Prompt
    generation: Generation


def question(row: Row, body: Mapping[str, Any]) -> _Question:
    """What a body asks, by the gateway's own rules; Failure says what Triton cannot be asked."""
    try:
        request: ChatRequest | CompletionRequest
        if row.endpoint == CHAT:
            request = ChatRequest.model_validate(dict(body))
        else:
            request = CompletionRequest.model_validate(dict(body))
        request.check()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "body"
        raise _refusal(f"{key}: {first['msg']}") from error
    except HttpError as error:
        raise _refusal(str(error)) from error
    if request.model != MODEL:
        raise _refusal(f"there is no model {request.model!r}, only {MODEL!r}")
    if request.log_probs:
        raise _refusal("logprobs: ask the gateway, over http://")
    generation = request.generation(request.asked_tokens or MAX_TOKENS, log_probs=False)
    if isinstance(request, ChatRequest):
        return _Question([message.as_dict() for message in request.messages], generation)
    if request.echo or len(request.prompts) != 1:
        raise _refusal("echo and several prompts: ask the gateway, over http://")
    return _Question(request.prompts[0], generation)


def _refusal(text: str) -> Failure:
    return Failure(Kind.REFUSED, text, status=400)


class TritonTransport:
    """Asks the model `ensemble` at `address` (host:port)."""

    def __init__(self, address: str, *, secure: bool, key: str | None, timeout: float) -> None:
        self._address = address
        self._client = AsyncClient(
            address,
            timeouts=Timeouts(total=timeout),
            retries=Retries(attempts=1),
            tls=Tls() if secure else None,
            api_key=key,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def describe(self) -> dict[str, str | None]:
        if not await self._client.is_ready():
            raise Failure(Kind.LOST, f"no answer from {self._address}, or it has no model ready")
        try:
            parameters = await self._client.model_parameters(IDENTITY_MODEL)
        except RequestRefused:
            parameters = {}  # a Triton that is not ours
        except ClientError as error:
            raise Failure(Kind.LOST, str(error)) from error
        return {"model": MODEL} | {name: parameters.get(name) for name in DESCRIBED}

    async def ask(self, row: Row, body: Mapping[str, Any]) -> Answer:
        asked = question(row, body)
        try:
            pieces = [p async for p in self._client.generate(asked.prompt, asked.generation)]
            if any(piece.finish_reason == "cancelled" for piece in pieces):
                raise ServerFailed("the answer was cancelled at the server")
        except ClientError as error:
            raise _failure(error) from error
        request_id = uuid.uuid4().hex
        return Answer(200, request_id, _response(request_id, pieces, chat=row.endpoint == CHAT))


def _failure(error: ClientError) -> Failure:
    kind, status = _KINDS.get(type(error), (Kind.FAILED, 500))
    return Failure(kind, str(error), status=status)


def _response(request_id: str, pieces: list[Piece], *, chat: bool) -> dict[str, Any]:
    pieces = sorted(pieces, key=lambda piece: piece.sequence_index)
    prompt, completion = pieces[0].num_input_tokens, sum(p.num_output_tokens for p in pieces)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [_choice(piece, chat=chat) for piece in pieces],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


def _choice(piece: Piece, *, chat: bool) -> dict[str, Any]:
    message = {"role": "assistant", "content": piece.text, "refusal": None}
    said: dict[str, Any] = {"message": message} if chat else {"text": piece.text}
    return {
        "index": piece.sequence_index,
        **said,
        "logprobs": None,
        "finish_reason": piece.finish_reason,
    }
