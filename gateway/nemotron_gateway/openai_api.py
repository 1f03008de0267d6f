"""OpenAI's API: chat completions, completions, models."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import cast

from nemotron_client import Generation, Piece
from nemotron_core.errors import NemotronError
from nemotron_core.generation import Prompt
from nemotron_core.openai.answer import Answer, ChatAnswer, CompletionAnswer, Usage, no_usage
from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_core.text import Message, Tokenizer
from nemotron_gateway.backend import Backend
from nemotron_gateway.call import Call, while_connected
from nemotron_gateway.settings import GatewaySettings

COMPLETION_TOKENS = 16
"""OpenAI's default for completions."""
TEMPLATE_TOKENS = 64
"""More than the chat template adds to a message."""


class OpenAI:
    """The endpoints; every failure is an HttpError."""

    def __init__(self, settings: GatewaySettings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._created = int(time.time())

    async def models(self, call: Call) -> None:
        """`GET /v1/models`."""
        await call.respond({"object": "list", "data": [await self._model()]})

    async def model(self, call: Call) -> None:
        """`GET /v1/models/{name}`."""
        self._check_model(call.path_parameter("name"))
        await call.respond(await self._model())

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

    async def chat(self, call: Call) -> None:
        """`POST /v1/chat/completions`."""
        request = await call.request(ChatRequest)
        self._check(request)
        messages = [message.as_dict() for message in request.messages]
        self._check_prompts(["".join(message["content"] for message in messages)], "messages")
        await while_connected(call, self._chat(call, request, messages))

    async def completions(self, call: Call) -> None:
        """`POST /v1/completions`."""
        request = await call.request(CompletionRequest)
        self._check(request)
        self._check_prompts(request.prompts, "prompt")
        await while_connected(call, self._complete(call, request))

    async def _chat(self, call: Call, request: ChatRequest, messages: list[dict[str, str]]) -> None:
        max_tokens = request.asked_tokens or await self._room(messages)
        generation = request.generation(max_tokens, log_probs=request.log_probs)
        tokenizer = await self._tokenizer(request)
        answer = ChatAnswer(self._settings.model, tokenizer)
        pieces = self._pieces([messages], generation, stream=bool(request.stream))
        if request.stream:
            await _stream(call, answer, pieces, request.answers, usage=request.wants_usage)
        else:
            await _whole(call, answer, pieces)

    async def _complete(self, call: Call, request: CompletionRequest) -> None:
        max_tokens = request.asked_tokens or COMPLETION_TOKENS
        generation = request.generation(max_tokens, log_probs=request.log_probs)
        tokenizer = await self._tokenizer(request)
        prompts = request.prompts
        echoes = await self._echoes(prompts) if request.echo else [""] * len(prompts)
        answer = CompletionAnswer(
            self._settings.model,
            tokenizer,
            [echo for echo in echoes for _ in range(request.answers)],
        )
        pieces = self._pieces(prompts, generation, stream=bool(request.stream))
        if request.stream:
            count = request.answers * len(prompts)
            await _stream(call, answer, pieces, count, usage=request.wants_usage)
        else:
            await _whole(call, answer, pieces)

    def _check(self, request: ChatRequest | CompletionRequest) -> None:
        self._check_model(request.model)
        request.check()
        limits = self._settings.limits
        if (request.asked_tokens or 0) > limits.max_tokens:
            raise bad_request(f"at most {limits.max_tokens} tokens are generated", "max_tokens")
        if request.answers > limits.answers:
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

    async def _tokenizer(self, request: ChatRequest | CompletionRequest) -> Tokenizer | None:
        if not request.log_probs:
            return None
        return await self._backend.tokenizer("a token's text", "logprobs")

    async def _echoes(self, prompts: Sequence[str | list[int]]) -> list[str]:
        """The prompts as text."""
        if all(isinstance(prompt, str) for prompt in prompts):
            return [str(prompt) for prompt in prompts]
        tokenizer = await self._backend.tokenizer("the echo of a prompt of tokens", "echo")
        return [
            p if isinstance(p, str) else tokenizer.decode(p, show_control=True) for p in prompts
        ]

    async def _room(self, messages: list[dict[str, str]]) -> int:
        """`default_max_tokens`, or what the prompt leaves of the model's length."""
        wanted = self._settings.default_max_tokens
        facts = await self._backend.facts()
        most = sum(len(m["content"].encode(errors="replace")) + TEMPLATE_TOKENS for m in messages)
        if most + wanted <= facts.max_seq_len or facts.tokenizer is None:
            return wanted  # a token is a byte or more
        try:
            prompt = len(facts.tokenizer.encode_chat(cast("list[Message]", messages)))
        except NemotronError:
            return wanted  # what the template refuses, Triton refuses too
        return max(1, min(wanted, facts.max_seq_len - prompt))

    async def _pieces(
        self, prompts: Sequence[Prompt], generation: Generation, *, stream: bool
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Pieces of all answers to all prompts, each with the place of its answer."""
        sources = [self._backend.generate(p, generation, stream=stream) for p in prompts]
        each = generation.num_return_sequences or 1
        async with aclosing(_merged(sources)) as merged:
            async for number, piece in merged:
                yield number * each + piece.sequence_index, piece


async def _merged(
    sources: Sequence[AsyncGenerator[Piece, None]],
) -> AsyncGenerator[tuple[int, Piece], None]:
    """What comes from several, as it comes; one failure ends them all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for piece in only:
                yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue(len(sources))

    async def read(number: int, source: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(source):
                async for piece in source:
                    await queue.put((number, piece))
            await queue.put(None)
        except Exception as error:  # raised where the pieces are taken
            await queue.put(error)

    tasks = [asyncio.ensure_future(read(n, source)) for n, source in enumerate(sources)]
    try:
        running = len(tasks)
        while running:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                running -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(
    call: Call, answer: Answer, pieces: AsyncGenerator[tuple[int, Piece], None]
) -> None:
    found: dict[int, Piece] = {}
    async with aclosing(pieces):
        async for index, piece in pieces:
            found[index] = piece
    usage = Usage()
    for index, piece in found.items():
        usage.add(index, piece)
    call.count_tokens(usage.prompt_tokens, usage.completion_tokens)
    await call.respond(answer.whole(found) | {"usage": usage.as_dict()})


async def _stream(
    call: Call,
    answer: Answer,
    pieces: AsyncGenerator[tuple[int, Piece], None],
    count: int,
    *,
    usage: bool,
) -> None:
    """Nothing is sent before the first piece is there: until then a failure has its own status."""
    used = Usage()
    before, after = answer.quick(usage)
    is_simple = count == 1
    begun = False
    try:
        async with aclosing(pieces):
            async for index, piece in pieces:
                call.count_piece()
                used.add(index, piece)
                if not begun:
                    begun = True
                    await call.start_stream()
                    opening = [one for i in range(count) if (one := answer.first(i)) is not None]
                    for choice in opening:
                        await call.event(answer.chunk([choice]) | no_usage(usage))
                if is_simple and not piece.log_probs and not piece.finish_reason:
                    text = json.dumps(piece.text, ensure_ascii=False)
                    await call.event_text(f"{before}{text}{after}")
                    continue
                choice = answer.piece(index, piece.text, answer.log_probs(index, piece), None)
                if piece.text or piece.log_probs:
                    await call.event(answer.chunk([choice]) | no_usage(usage))
                if piece.finish_reason:
                    last = answer.piece(index, "", None, piece.finish_reason)
                    await call.event(answer.chunk([last]) | no_usage(usage))
    finally:
        call.count_tokens(used.prompt_tokens, used.completion_tokens)
    if usage:
        await call.event(answer.chunk([]) | {"usage": used.as_dict()})
    await call.end_stream()
