"""The gateway's connection to Triton: generations, facts about the model, readiness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from nemotron_client import (
    AsyncClient,
    ClientError,
    Generation,
    Piece,
    Retries,
    ServerFailed,
    ServerOverloaded,
    Timeouts,
)
from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.generation import Prompt
from nemotron_core.openai.errors import HttpError
from nemotron_core.text import Tokenizer
from nemotron_gateway.json_response import from_client_error
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.settings import GatewaySettings

CANARY_IDS = (5,)
"""Prompt of the request that shows whether the engine generates."""
CANARY_SECONDS = 1.0
"""Seconds for which the result of that request is used again."""
CONNECT_SECONDS = 5.0
IDENTITY_PARAMETERS = ("engine", "checkpoint", "template")
TEXT_MODEL = "tensorrt_llm_bls"
"""Model whose configuration has the facts about what is served; it exists on every lane."""


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
    """The client of Triton, as an asynchronous context manager. Every failure is an `HttpError`."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._running = 0
        self._facts: ModelFacts | None = None
        self._canary_time = float("-inf")
        self._canary = asyncio.Lock()

    async def __aenter__(self) -> Backend:
        self._client = AsyncClient(
            self._settings.triton,
            timeouts=Timeouts(connect=CONNECT_SECONDS, total=self._settings.timeouts.request),
            # A full queue is reported at once: the client knows best when to try again.
            retries=Retries(attempts=1),
        )
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._client.aclose()

    async def generate(
        self, prompt: Prompt, generation: Generation, *, stream: bool
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of all answers to one prompt."""
        with self._running_prompt():
            try:
                pieces = self._client.generate(prompt, generation, stream=stream)
                try:
                    async for piece in pieces:
                        if piece.finish_reason == "cancelled":
                            raise ServerFailed("the answer was cancelled at the server")
                        yield piece
                finally:
                    await pieces.aclose()
            except ClientError as error:
                raise from_client_error(error) from error

    async def generate_all(
        self, prompts: Sequence[Prompt], generation: Generation, *, stream: bool
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield the pieces of all answers to all prompts, each with the index of its answer.

        The prompts run at the same time. A failure of one ends all of them.
        """
        sources = [self.generate(prompt, generation, stream=stream) for prompt in prompts]
        answers_per_prompt = generation.num_return_sequences or 1
        async with aclosing(_merge(sources)) as pieces:
            async for prompt_index, piece in pieces:
                yield prompt_index * answers_per_prompt + piece.sequence_index, piece

    @contextmanager
    def _running_prompt(self) -> Iterator[None]:
        if self._running >= self._settings.limits.requests:
            message = f"{self._running} prompts are at the engine already"
            raise HttpError.of_kind(ErrorKind.OVERLOADED, message)
        self._running += 1
        self._metrics.running.set(self._running)
        try:
            yield
        finally:
            self._running -= 1
            self._metrics.running.set(self._running)

    async def facts(self) -> ModelFacts:
        """Return the facts about the model. Triton gets requests until it has answered once."""
        if self._facts is None:
            try:
                parameters = await self._client.model_parameters(TEXT_MODEL)
            except ClientError as error:
                raise from_client_error(error) from error
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
        """Return whether the engine generates a token; an overloaded engine counts as ready."""
        async with self._canary:
            if time.monotonic() - self._canary_time < CANARY_SECONDS:
                return True
            try:
                await asyncio.wait_for(
                    self._client.complete(CANARY_IDS, Generation(max_tokens=1)),
                    self._settings.timeouts.ready,
                )
            except ServerOverloaded:
                pass
            except (ClientError, asyncio.TimeoutError):
                return False
            self._canary_time = time.monotonic()
            return True


async def _merge(
    sources: Sequence[AsyncGenerator[Piece, None]],
) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield the pieces of all sources as they come, each with the index of its source."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for piece in source:
                yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue(len(sources))

    async def read(index: int, source: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(source):
                async for piece in source:
                    await queue.put((index, piece))
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
