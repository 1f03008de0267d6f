"""The way to Triton: one async client, how many may use it at once, what it says of itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from nemotron_gateway.errors import failure, from_client_error
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.settings import GatewaySettings

CANARY_IDS = (5,)
CANARY_SECONDS = 1.0
"""How long an answer to the canary counts."""
CONNECT_SECONDS = 5.0
IDENTITY = ("engine", "checkpoint", "template")
TEXT_MODEL = "tensorrt_llm_bls"
"""Whose configuration says what the model holds; it is there on every lane."""


@dataclass(frozen=True)
class Facts:
    """What Triton's configuration says about the model."""

    max_seq_len: int
    tokenizer: Tokenizer | None
    """None if its file is not on this machine."""
    identity: dict[str, str]
    """Hashes of what decides about an answer's text."""


class Backend:
    """A context manager; every failure is an HttpError."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._running = 0
        self._facts: Facts | None = None
        self._canary_at = float("-inf")
        self._canary = asyncio.Lock()

    async def __aenter__(self) -> Backend:
        self._client = AsyncClient(
            self._settings.triton,
            timeouts=Timeouts(connect=CONNECT_SECONDS, total=self._settings.timeouts.request),
            # A full queue is told at once: the one who asked knows best when to come again.
            retries=Retries(attempts=1),
        )
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._client.aclose()

    async def generate(
        self, prompt: Prompt, generation: Generation, *, stream: bool
    ) -> AsyncGenerator[Piece, None]:
        """All pieces of all answers to one prompt."""
        with self._place():
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

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._running >= self._settings.limits.requests:
            message = f"{self._running} prompts are at the engine already"
            raise failure(ErrorKind.OVERLOADED, message)
        self._running += 1
        self._metrics.running.set(self._running)
        try:
            yield
        finally:
            self._running -= 1
            self._metrics.running.set(self._running)

    async def facts(self) -> Facts:
        """Asked once; HttpError as long as Triton cannot be asked."""
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
            identity = {name: parameters[name] for name in IDENTITY if name in parameters}
            self._facts = Facts(int(parameters["max_seq_len"]), tokenizer, identity)
        return self._facts

    async def tokenizer(self, what: str, param: str | None = None) -> Tokenizer:
        """HttpError if there is none, for `what` needs it."""
        tokenizer = (await self.facts()).tokenizer
        if tokenizer is None:
            raise HttpError(
                501,
                f"{what} needs the model's tokenizer, which this gateway was started without",
                kind="server_error",
                code="no_tokenizer",
                param=param,
            )
        return tokenizer

    async def is_ready(self) -> bool:
        """Whether the engine makes a token; one that is only busy does."""
        async with self._canary:
            if time.monotonic() - self._canary_at < CANARY_SECONDS:
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
            self._canary_at = time.monotonic()
            return True
