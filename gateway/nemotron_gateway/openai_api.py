"""The endpoints of OpenAI's API that generate: chat completions and completions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.errors import NemotronError
from nemotron_core.generation import Generation, Piece, Prompt, join_pieces
from nemotron_core.openai.answer import Answer, AnswerOptions, ChatAnswer, CompletionAnswer
from nemotron_core.openai.errors import bad_request
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_core.text import Message, Tokenizer
from nemotron_gateway.admission import Admission, estimate_tokens
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.models import Models, ServedModel
from nemotron_gateway.request import compute, read_body, while_connected
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings
from nemotron_gateway.stream import EventStream, stream_answer

COMPLETION_TOKENS = 16
"""OpenAI's default of `max_tokens` for completions."""
TEMPLATE_TOKENS = 64
"""An upper bound on the tokens that the chat template adds to a message."""


class OpenAI:
    """The endpoints. Every failure before an answer's first piece is raised as an `HttpError`."""

    def __init__(
        self, settings: GatewaySettings, backend: Backend, models: Models, admission: Admission
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._models = models
        self._admission = admission

    async def chat(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/chat/completions`."""
        body = await read_body(request, record, self._settings, ChatRequest)
        model = await self._check(body)
        messages = self._messages(body)
        ids: list[list[int]] = []
        if _needs_ids(body):
            tokenizer = await self._backend.tokenizer("a prompt's tokens", "prompt_logprobs")
            ids = [await self._encode_chat(tokenizer, messages, body)]
        options = await self._options(body, ids)
        answer = ChatAnswer(model.name, options, num_answers=body.num_answers)
        generation = _generation(body, await self._max_tokens(body, messages), model)
        return await self._respond(request, record, body, [messages], generation, answer)

    async def chat_pieces(
        self, body: ChatRequest, record: RequestRecord
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Return the pieces of the answer to a conversation, for another form of the request."""
        body.check()
        model = await self._check(body)
        messages = self._messages(body)
        generation = _generation(body, await self._max_tokens(body, messages), model)
        return self._generate(record, [messages], generation, body.timeout)

    def _messages(self, body: ChatRequest) -> list[dict[str, str]]:
        messages = [message.as_dict() for message in body.messages]
        self._check_prompts(["".join(message["content"] for message in messages)], "messages")
        return messages

    async def completions(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/completions`."""
        body = await read_body(request, record, self._settings, CompletionRequest)
        model = await self._check(body)
        self._check_prompts(body.prompts, "prompt")
        prompts: Sequence[Prompt] = body.prompts
        ids: list[list[int]] = []
        if _needs_ids(body):
            ids = [await self._encode(prompt) for prompt in body.prompts]
            prompts = ids
        echoes = await self._echoes(body, ids) if body.echo else []
        options = await self._options(body, ids, echoes)
        answer = CompletionAnswer(model.name, options, num_answers=body.num_answers)
        max_tokens = body.requested_tokens
        if max_tokens is None:
            max_tokens = COMPLETION_TOKENS
        generation = _generation(body, max_tokens, model)
        return await self._respond(request, record, body, prompts, generation, answer)

    async def _respond(
        self,
        request: Request,
        record: RequestRecord,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[Prompt],
        generation: Generation,
        answer: Answer,
    ) -> Response:
        """Generate the answers to all prompts, and return them whole or as a stream."""
        pieces = self._generate(record, prompts, generation, body.timeout)
        if body.stream:
            events = stream_answer(answer, pieces, body.num_answers * len(prompts), record)
            return EventStream(events, record, self._settings.timeouts.heartbeat)
        content = await while_connected(request.receive, _whole(answer, pieces))
        record.count_tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens)
        return JsonResponse(content)

    async def _generate(
        self,
        record: RequestRecord,
        prompts: Sequence[Prompt],
        generation: Generation,
        timeout: float | None,
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield the pieces of all answers, once the limits allow them."""
        answers = len(prompts) * (generation.num_return_sequences or 1)
        tokens = answers * generation.max_tokens + sum(map(_size, prompts))
        async with self._admission.enter(record, answers, tokens):
            source = self._backend.generate_all(prompts, generation, timeout)
            async with aclosing(source) as pieces:
                async for index, piece in pieces:
                    yield index, piece

    async def _options(
        self,
        body: ChatRequest | CompletionRequest,
        ids: Sequence[Sequence[int]],
        echoes: Sequence[str] = (),
    ) -> AnswerOptions:
        tokenizer = None
        if body.log_probs:
            tokenizer = await self._backend.tokenizer("a token's text", "logprobs")
        facts = await self._backend.facts()
        return AnswerOptions(
            fingerprint=facts.fingerprint,
            include_usage=body.include_usage,
            continuous_usage=body.continuous_usage,
            tokenizer=tokenizer,
            top=body.top,
            prompt_top=body.prompt_logprobs,
            prompts=ids,
            echoes=echoes,
            without_answer=body.requested_tokens == 0,
        )

    async def _check(self, body: ChatRequest | CompletionRequest) -> ServedModel:
        """Return the model. Raises `HttpError` for another one, or for too much."""
        model = await self._models.find(body.model)
        limits = self._settings.limits
        if (body.requested_tokens or 0) > limits.max_tokens:
            raise bad_request(f"at most {limits.max_tokens} tokens are generated", "max_tokens")
        if body.num_answers > limits.answers:
            raise bad_request(f"at most {limits.answers} answers", "n")
        return model

    def _check_prompts(self, prompts: Sequence[str | list[int]], param: str) -> None:
        limits = self._settings.limits
        if len(prompts) > limits.prompts:
            raise bad_request(f"at most {limits.prompts} prompts in one request", param)
        if max(map(len, prompts)) > limits.prompt_characters:
            raise bad_request(
                f"a prompt has at most {limits.prompt_characters} characters",
                param,
                code="context_length_exceeded",
            )

    async def _encode(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        tokenizer = await self._backend.tokenizer("a prompt's tokens", "prompt_logprobs")
        return await compute(lambda: tokenizer.encode(prompt), size=len(prompt))

    async def _encode_chat(
        self, tokenizer: Tokenizer, messages: list[dict[str, str]], body: ChatRequest
    ) -> list[int]:
        def encode() -> list[int]:
            return tokenizer.encode_chat(
                cast("list[Message]", messages),
                answer_follows=body.add_generation_prompt is not False,
                is_continued=bool(body.continue_final_message),
            )

        try:
            return await compute(encode, size=sum(len(m["content"]) for m in messages))
        except NemotronError as error:
            raise bad_request(str(error), "messages") from error

    async def _echoes(self, body: CompletionRequest, ids: Sequence[list[int]]) -> list[str]:
        """Return the prompts as texts, which are those of their tokens if these are returned."""
        prompts: Sequence[str | list[int]] = body.prompts if body.prompt_top is None else ids
        if all(isinstance(prompt, str) for prompt in prompts):
            return [str(prompt) for prompt in prompts]
        tokenizer = await self._backend.tokenizer("the echo of a prompt of tokens", "echo")
        return [
            p if isinstance(p, str) else tokenizer.decode(p, show_control=True) for p in prompts
        ]

    async def _max_tokens(self, body: ChatRequest, messages: list[dict[str, str]]) -> int:
        """Return the number of tokens to generate: as many as the request asks for.

        Without that it is `default_max_tokens`, or less if the prompt leaves less of the model's
        length.
        """
        if body.requested_tokens is not None:
            return body.requested_tokens
        default = self._settings.default_max_tokens
        facts = await self._backend.facts()
        # A token is one byte or more, so this bound needs no tokenizer.
        size = sum(len(m["content"].encode(errors="replace")) for m in messages)
        bound = size + TEMPLATE_TOKENS * len(messages)
        tokenizer = facts.tokenizer
        if bound + default <= facts.max_seq_len or tokenizer is None:
            return default
        chat = cast("list[Message]", messages)
        try:
            prompt_tokens = len(await compute(lambda: tokenizer.encode_chat(chat), size=size))
        except NemotronError:
            return default  # Triton refuses what the template refuses, and says why
        return max(1, min(default, facts.max_seq_len - prompt_tokens))


def _generation(
    body: ChatRequest | CompletionRequest, max_tokens: int, model: ServedModel
) -> Generation:
    return replace(body.generation(max_tokens), lora_name=model.lora_name)


def _needs_ids(body: ChatRequest | CompletionRequest) -> bool:
    """Return whether the answer needs the tokens of its prompts."""
    return body.prompt_top is not None or body.continuous_usage


def _size(prompt: Prompt) -> int:
    """Return about how many tokens a prompt has."""
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        return estimate_tokens(cast("str | list[int]", prompt))
    messages = cast("Sequence[dict[str, str]]", prompt)
    return sum(estimate_tokens(message["content"]) for message in messages)


async def _whole(answer: Answer, pieces: AsyncGenerator[tuple[int, Piece], None]) -> dict[str, Any]:
    """Return the whole answer, once all of its pieces have come."""
    parts: defaultdict[int, list[Piece]] = defaultdict(list)
    async with aclosing(pieces):
        async for index, piece in pieces:
            parts[index].append(piece)
    return answer.whole({index: join_pieces(pieces) for index, pieces in parts.items()})
