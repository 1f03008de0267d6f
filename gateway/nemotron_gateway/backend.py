"""The gateway's connection to Triton: generations, facts about the model, readiness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.generation import Generation, Piece, Prompt
from nemotron_core.openai.errors import HttpError
from nemotron_core.text import Tokenizer
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.settings import GatewaySettings
from nemotron_gateway.triton import Triton

CANARY_IDS = (5,)
"""Prompt of the request that shows whether the engine generates."""
CANARY_SECONDS = 1.0
"""Seconds for which the result of that request is used again."""
IDENTITY_PARAMETERS = ("engine", "checkpoint", "template")


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the model from Triton's configuration."""

    max_seq_len: int
    """Largest number of tokens of a prompt and its answer together."""
    tokenizer: Tokenizer | None
    """`None` if its file is not on this machine."""
    identity: dict[str, str]
    """Hashes of everything that determines the text of an answer."""


class Backend:
    """The text model with the gateway's own limits, as an asynchronous context manager.

    Every failure is an `HttpError`.
    """

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._triton = Triton(settings.triton)
        self._running = 0
        metrics.running.set_function(lambda: self._running)
        self._facts: ModelFacts | None = None
        self._piece_time = float("-inf")
        """Time of the last piece of any answer."""
        self._is_ready = False
        self._canary_time = float("-inf")
        self._canary = asyncio.Lock()

    async def __aenter__(self) -> Backend:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._triton.close()

    async def generate(
        self, prompt: Prompt, generation: Generation, timeout: float | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of all answers to one prompt.

        `timeout` in seconds is the client's; the gateway's own counts if it is less.
        """
        own_timeout = self._settings.timeouts.request
        seconds = own_timeout if timeout is None else min(timeout, own_timeout)
        with self._running_prompt():
            async with aclosing(self._triton.generate(prompt, generation, seconds)) as pieces:
                async for piece in pieces:
                    if piece.finish_reason == "cancelled":
                        message = "the answer was cancelled at the server"
                        raise HttpError.of_kind(ErrorKind.FAILED, message)
                    self._piece_time = time.monotonic()
                    yield piece

    def generate_all(
        self, prompts: Sequence[Prompt], generation: Generation, timeout: float | None
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield the pieces of all answers to all prompts, each with the index of its answer.

        The prompts run at the same time. A failure of one ends all of them.
        """
        sources = [self.generate(prompt, generation, timeout) for prompt in prompts]
        return _merge(sources, generation.num_return_sequences or 1)

    @contextmanager
    def _running_prompt(self) -> Iterator[None]:
        if self._running >= self._settings.limits.requests:
            message = f"{self._running} prompts are at the engine already"
            raise HttpError.of_kind(ErrorKind.OVERLOADED, message)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def facts(self) -> ModelFacts:
        """Return the facts about the model. Triton gets requests until it has answered once."""
        if self._facts is None:
            parameters = await self._triton.parameters()
            path = self._settings.tokenizer or Path(parameters["tokenizer_path"])
            try:
                tokenizer = await asyncio.to_thread(Tokenizer, path)
            except NemotronError:
                tokenizer = None
            identity = {
                name: parameters[name] for name in IDENTITY_PARAMETERS if name in parameters
            }
            self._facts = ModelFacts(int(parameters["max_seq_len"]), tokenizer, identity)
        return self._facts

    async def tokenizer(self, purpose: str, param: str | None = None) -> Tokenizer:
        """Return the tokenizer. Raises `HttpError` that names the purpose if there is none."""
        tokenizer = (await self.facts()).tokenizer
        if tokenizer is None:
            raise HttpError(
                HTTPStatus.NOT_IMPLEMENTED,
                f"{purpose} needs the model's tokenizer, which this gateway was started without",
                error_type="server_error",
                code="no_tokenizer",
                param=param,
            )
        return tokenizer

    async def is_ready(self) -> bool:
        """Return whether the engine generates. A result is used again for `CANARY_SECONDS`."""
        async with self._canary:
            if time.monotonic() - self._canary_time >= CANARY_SECONDS:
                self._is_ready = await self._generates()
                self._canary_time = time.monotonic()
            return self._is_ready

    async def _generates(self) -> bool:
        """Return whether the engine generates a token, for this request or another one.

        An overloaded engine counts as ready. A busy one may let the request wait, but then other
        answers go on.
        """
        began = time.monotonic()
        canary = self._triton.generate(
            CANARY_IDS, Generation(max_tokens=1), self._settings.timeouts.ready
        )
        try:
            async with aclosing(canary) as pieces:
                async for _piece in pieces:
                    pass
        except HttpError as error:
            if error.status == ErrorKind.TIMED_OUT.codes.http:
                return self._piece_time > began
            return error.status == ErrorKind.OVERLOADED.codes.http
        return True


async def _merge(
    sources: Sequence[AsyncGenerator[Piece, None]], answers: int
) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield the pieces of all sources, which have `answers` each, with the index of the answer."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for piece in source:
                yield piece.sequence_index, piece
        return
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue(len(sources))

    async def read(index: int, source: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(source):
                async for piece in source:
                    await queue.put((index * answers + piece.sequence_index, piece))
            await queue.put(None)
        except Exception as error:  # raised again by the reader of the queue
            await queue.put(error)

    tasks = [asyncio.ensure_future(read(index, source)) for index, source in enumerate(sources)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
