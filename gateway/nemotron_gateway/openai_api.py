"""The endpoints of OpenAI's API: chat completions, completions, models."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.errors import NemotronError
from nemotron_core.generation import Piece, Prompt, join_pieces
from nemotron_core.openai.answer import Answer, ChatAnswer, CompletionAnswer
from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_core.text import Message, Tokenizer
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.request import parse_body, read_json, while_connected
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings
from nemotron_gateway.stream import EventStream, stream_answer

COMPLETION_TOKENS = 16
"""OpenAI's default of `max_tokens` for completions."""
TEMPLATE_TOKENS = 64
"""An upper bound on the tokens that the chat template adds to a message."""


class OpenAI:
    """The endpoints. Every failure before an answer's first piece is raised as an `HttpError`."""

    def __init__(self, settings: GatewaySettings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._created = int(time.time())

    async def models(self, _request: Request, _record: RequestRecord) -> Response:
        """Answer `GET /v1/models`."""
        return JsonResponse({"object": "list", "data": [await self._model()]})

    async def model(self, request: Request, _record: RequestRecord) -> Response:
        """Answer `GET /v1/models/{name}`."""
        self._check_model(request.path_params["name"])
        return JsonResponse(await self._model())

    async def _model(self) -> dict[str, object]:
        facts = await self._backend.facts()
        return {
            "id": self._settings.model,
            "object": "model",
            "created": self._created,
            "owned_by": "nvidia",
            "max_model_len": facts.max_seq_len,
            **facts.identity,
        }

    async def chat(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/chat/completions`."""
        body = parse_body(await read_json(request, record, self._settings), ChatRequest)
        self._check(body)
        messages = [message.as_dict() for message in body.messages]
        self._check_prompts(["".join(message["content"] for message in messages)], "messages")
        answer = ChatAnswer(
            self._settings.model,
            tokenizer=await self._tokenizer(body),
            include_usage=body.include_usage,
        )
        max_tokens = body.requested_tokens or await self._remaining_tokens(messages)
        return await self._respond(request, record, body, [messages], max_tokens, answer)

    async def completions(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/completions`."""
        body = parse_body(await read_json(request, record, self._settings), CompletionRequest)
        self._check(body)
        self._check_prompts(body.prompts, "prompt")
        echoes = await self._echoes(body.prompts) if body.echo else []
        answer = CompletionAnswer(
            self._settings.model,
            tokenizer=await self._tokenizer(body),
            include_usage=body.include_usage,
            echoes=[echo for echo in echoes for _ in range(body.num_answers)],
        )
        max_tokens = body.requested_tokens or COMPLETION_TOKENS
        return await self._respond(request, record, body, body.prompts, max_tokens, answer)

    async def _respond(
        self,
        request: Request,
        record: RequestRecord,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[Prompt],
        max_tokens: int,
        answer: Answer,
    ) -> Response:
        """Generate the answers to all prompts, and return them whole or as a stream."""
        generation = body.generation(max_tokens, log_probs=body.log_probs)
        pieces = self._backend.generate_all(prompts, generation, body.timeout)
        if body.stream:
            count = body.num_answers * len(prompts)
            return EventStream(stream_answer(answer, pieces, count, record), record)

        async def generate() -> dict[str, Any]:
            parts: defaultdict[int, list[Piece]] = defaultdict(list)
            async with aclosing(pieces):
                async for index, piece in pieces:
                    parts[index].append(piece)
            return answer.whole({index: join_pieces(pieces) for index, pieces in parts.items()})

        content = await while_connected(request.receive, generate())
        record.count_tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens)
        return JsonResponse(content)

    def _check(self, body: ChatRequest | CompletionRequest) -> None:
        self._check_model(body.model)
        body.check()
        limits = self._settings.limits
        if (body.requested_tokens or 0) > limits.max_tokens:
            raise bad_request(f"at most {limits.max_tokens} tokens are generated", "max_tokens")
        if body.num_answers > limits.answers:
            raise bad_request(f"at most {limits.answers} answers", "n")

    def _check_model(self, name: str) -> None:
        if name != self._settings.model:
            raise HttpError(
                HTTPStatus.NOT_FOUND,
                f"there is no model {name!r}, only {self._settings.model!r}",
                code="model_not_found",
                param="model",
            )

    def _check_prompts(self, prompts: Sequence[str | list[int]], param: str) -> None:
        limits = self._settings.limits
        if len(prompts) > limits.prompts:
            raise bad_request(f"at most {limits.prompts} prompts in one request", param)
        if max(map(len, prompts)) > limits.prompt_characters:
            raise bad_request(f"a prompt has at most {limits.prompt_characters} characters", param)

    async def _tokenizer(self, body: ChatRequest | CompletionRequest) -> Tokenizer | None:
        """Return the tokenizer if the answer has log-probabilities, else `None`."""
        if not body.log_probs:
            return None
        return await self._backend.tokenizer("a token's text", "logprobs")

    async def _echoes(self, prompts: Sequence[str | list[int]]) -> list[str]:
        """Return the prompts as texts."""
        if all(isinstance(prompt, str) for prompt in prompts):
            return [str(prompt) for prompt in prompts]
        tokenizer = await self._backend.tokenizer("the echo of a prompt of tokens", "echo")
        return [
            p if isinstance(p, str) else tokenizer.decode(p, show_control=True) for p in prompts
        ]

    async def _remaining_tokens(self, messages: list[dict[str, str]]) -> int:
        """Return `default_max_tokens`, or less if the prompt leaves less of the model's length."""
        default = self._settings.default_max_tokens
        facts = await self._backend.facts()
        # A token is one byte or more, so this bound needs no tokenizer.
        bound = sum(len(m["content"].encode(errors="replace")) + TEMPLATE_TOKENS for m in messages)
        if bound + default <= facts.max_seq_len or facts.tokenizer is None:
            return default
        try:
            prompt_tokens = len(facts.tokenizer.encode_chat(cast("list[Message]", messages)))
        except NemotronError:
            return default  # Triton refuses what the template refuses, and says why
        return max(1, min(default, facts.max_seq_len - prompt_tokens))
