"""The transport to Triton over gRPC, with requests and answers in the form of OpenAI's API."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from nemotron_client import (
    AsyncClient,
    ClientError,
    Generation,
    RequestRefused,
    Retries,
    ServerFailed,
    Timeouts,
    Tls,
)
from nemotron_core.errors import ErrorKind
from nemotron_core.family import aliases
from nemotron_core.generation import Prompt
from nemotron_core.openai.answer import AnswerOptions, ChatAnswer, CompletionAnswer
from nemotron_core.openai.errors import HttpError
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_data.options import MAX_TOKENS, MODEL
from nemotron_data.rows.row import CHAT, Row
from nemotron_data.transport.protocol import HASHES, Answer, Failure

IDENTITY_MODEL = "tensorrt_llm_bls"
"""Triton model whose parameters identify the engine; every lane has it."""


def parse_request(
    row: Row, body: Mapping[str, Any], model: str = MODEL
) -> tuple[Prompt, Generation, list[str]]:
    """Return a request body's prompt, its generation settings, and its keys that are ignored.

    `model` is the name of the server's only model.

    The body is checked by the gateway's own schema. Raises `Failure` if the body does not fit it,
    or needs something that only the gateway can do.
    """
    request: ChatRequest | CompletionRequest
    try:
        schema: type[ChatRequest | CompletionRequest] = (
            ChatRequest if row.endpoint == CHAT else CompletionRequest
        )
        request = schema.model_validate(dict(body))
        request.check()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "body"
        raise _refusal(f"{key}: {first['msg']}") from error
    except HttpError as error:
        raise _refusal(str(error)) from error
    if request.model not in (None, model, *aliases(model)):
        raise _refusal(f"there is no model {request.model!r}, only {model!r}")
    if request.log_probs:
        raise _refusal("logprobs: ask the gateway, over http://")
    if request.timeout is not None:
        raise _refusal("timeout: ask the gateway, over http://")
    generation = request.generation(request.requested_tokens or MAX_TOKENS)
    if isinstance(request, ChatRequest):
        messages = [message.as_dict() for message in request.messages]
        return messages, generation, request.unknown_keys()
    if request.echo or len(request.prompts) != 1:
        raise _refusal("echo and several prompts: ask the gateway, over http://")
    return request.prompts[0], generation, request.unknown_keys()


class TritonTransport:
    """Sends each row to the model `ensemble` of the Triton server at `address` (host:port)."""

    def __init__(self, address: str, *, secure: bool, api_key: str | None, timeout: float) -> None:
        self._address = address
        self._model = MODEL
        self._client = AsyncClient(
            address,
            timeouts=Timeouts(total=timeout),
            retries=Retries(attempts=1),
            tls=Tls() if secure else None,
            api_key=api_key,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def describe(self) -> dict[str, str | None]:
        if not await self._client.is_ready():
            text = f"no answer from {self._address}, or it has no model ready"
            raise Failure(ErrorKind.UNREACHABLE, text)
        try:
            parameters = await self._client.model_parameters(IDENTITY_MODEL)
        except RequestRefused:
            parameters = {}  # another project's Triton, without this model
        except ClientError as error:
            raise Failure(ErrorKind.UNREACHABLE, str(error)) from error
        self._model = parameters.get("model", MODEL)
        return {"model": self._model} | {name: parameters.get(name) for name in HASHES}

    async def models(self) -> list[str]:
        return [self._model]

    async def send(self, row: Row, body: Mapping[str, Any]) -> Answer:
        prompt, generation, ignored = parse_request(row, body, self._model)
        try:
            pieces = [piece async for piece in self._client.generate(prompt, generation)]
            if any(piece.finish_reason == "cancelled" for piece in pieces):
                raise ServerFailed("the answer was cancelled at the server")
        except ClientError as error:
            raise Failure(error.kind, str(error), status=error.kind.codes.http) from error
        request_id = secrets.token_hex(16)
        builder = ChatAnswer if row.endpoint == CHAT else CompletionAnswer
        choices = {piece.sequence_index: piece for piece in pieces}
        content = builder(self._model, AnswerOptions(request_id=request_id)).whole(choices)
        return Answer(HTTPStatus.OK, request_id, json.dumps(content).encode(), ignored)


def _refusal(text: str) -> Failure:
    return Failure(ErrorKind.REFUSED, text, status=HTTPStatus.BAD_REQUEST)
