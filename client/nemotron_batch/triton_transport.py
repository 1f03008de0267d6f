"""Triton over gRPC, asked and answering in OpenAI's words, so that rows are the same for both."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from nemotron_batch.rows import CHAT, Row
from nemotron_batch.transport import MODEL, Answer, Failure, Kind
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

ENSEMBLE = "ensemble"
DESCRIBED = ("engine", "checkpoint", "template")
_KINDS: dict[type[ClientError], tuple[Kind, int]] = {
    RequestRefused: (Kind.REFUSED, 400),
    ServerOverloaded: (Kind.OVERLOADED, 429),
    RequestTimeout: (Kind.FAILED, 504),
    ConnectionFailed: (Kind.LOST, 503),
    ServerFailed: (Kind.FAILED, 500),
}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is {value!r}, not a number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"is {value!r}, not a whole number")
    return value


def _words(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("is neither a string nor a list of strings")
    return tuple(words)


_SETTINGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "max_tokens": ("max_tokens", _whole),
    "max_completion_tokens": ("max_tokens", _whole),
    "min_tokens": ("min_tokens", _whole),
    "temperature": ("temperature", _number),
    "top_p": ("top_p", _number),
    "top_k": ("top_k", _whole),
    "presence_penalty": ("presence_penalty", _number),
    "frequency_penalty": ("frequency_penalty", _number),
    "repetition_penalty": ("repetition_penalty", _number),
    "seed": ("seed", _whole),
    "n": ("num_return_sequences", _whole),
    "stop": ("stop_words", _words),
}
"""Keys of a body: what they are called on Triton, and how they are checked."""
_PASSED_OVER = {"messages", "prompt", "model", "stream", "user", "metadata"}


def generation(body: Mapping[str, Any]) -> Generation:
    """The settings in a body. ValueError names a key that Triton has no word for."""
    settings: dict[str, Any] = {}
    for key, value in body.items():
        if key in _PASSED_OVER or value is None:
            continue
        if key not in _SETTINGS:
            raise ValueError(f"{key} is not known over grpc://")
        name, check = _SETTINGS[key]
        try:
            settings[name] = check(value)
        except ValueError as error:
            raise ValueError(f"{key} {error}") from error
    return Generation(**settings)


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
            parameters = await self._client.model_parameters(ENSEMBLE)
        except ClientError as error:
            raise Failure(Kind.LOST, str(error)) from error
        return {"model": MODEL} | {name: parameters.get(name) for name in DESCRIBED}

    async def ask(self, row: Row, body: Mapping[str, Any]) -> Answer:
        chat = row.endpoint == CHAT
        try:
            settings = generation(body)
            prompt = body["messages" if chat else "prompt"]
            if chat == isinstance(prompt, str):
                raise ValueError("messages must be a list" if chat else "prompt must be a string")
        except ValueError as error:
            raise Failure(Kind.REFUSED, str(error), status=400) from error
        try:
            pieces = [piece async for piece in self._client.generate(prompt, settings)]
            if any(piece.finish_reason == "cancelled" for piece in pieces):
                raise ServerFailed("the answer was cancelled at the server")
        except ClientError as error:
            raise _failure(error) from error
        request_id = uuid.uuid4().hex
        return Answer(200, request_id, _response(request_id, pieces, chat=chat))


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
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": piece.text}} if chat else {"text": piece.text}
    )
    return {
        "index": piece.sequence_index,
        **said,
        "logprobs": None,
        "finish_reason": piece.finish_reason,
    }
