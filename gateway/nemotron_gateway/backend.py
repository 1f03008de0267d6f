"""The gateway's connection to Triton: generations, facts about the model, readiness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.generation import Generation, Piece, Prompt
from nemotron_core.openai.answer import engine_fingerprint
from nemotron_core.openai.errors import HttpError
from nemotron_core.openai.reward import TurnScores
from nemotron_core.reward import EMPTY_CONVERSATION, ModelKind
from nemotron_core.text import Tokenizer
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.sequences import generate_groups, groups_of
from nemotron_gateway.settings import GatewaySettings
from nemotron_gateway.triton import Configuration, Triton

CANARY_IDS = (5,)
"""Prompt of the request that shows whether the engine generates."""
CANARY_SECONDS = 1.0
"""Seconds for which the result of that request is used again."""
FACTS_SECONDS, OLD_FACTS_SECONDS = 2.0, 5.0
"""Ages after which facts about the model are read again, and after which requests wait for it."""
FAILURE_SECONDS = 1.0
"""Seconds for which a failure to read them is used again: who waits does not wait in turn."""
IDENTITY_PARAMETERS = ("engine", "checkpoint", "template")


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the model from Triton's configuration."""

    max_seq_len: int
    """Largest number of tokens of a prompt and its answer together."""
    slots: int
    """Number of sequences that the engine computes at the same time."""
    tokenizer: Tokenizer | None
    """`None` if its file is not on this machine."""
    identity: dict[str, str]
    """Hashes of everything that determines the text of an answer."""
    kind: ModelKind = "text"
    """What the engine makes: text, or the scores of a reward model."""

    @property
    def fingerprint(self) -> str | None:
        """The engine's name in answers, `system_fingerprint` of OpenAI's API."""
        engine = self.identity.get("engine")
        return engine_fingerprint(engine) if engine else None


class Backend:
    """The text model with the gateway's own limits, as an asynchronous context manager.

    Every failure is an `HttpError`.
    """

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._triton = Triton(settings.triton, self._doubt_facts)
        self._running = 0
        metrics.running.set_function(lambda: self._running)
        self._facts: ModelFacts | None = None
        self._configuration: Configuration | None = None
        self._facts_time = float("-inf")
        self._failure: tuple[float, HttpError] | None = None
        """Time and reason of the last failure to read the facts."""
        self._asking = asyncio.Lock()
        self._refresh: asyncio.Task[None] | None = None
        self._piece_time = float("-inf")
        """Time of the last piece of any answer."""
        self._is_ready = False
        self._canary_time = float("-inf")
        self._canary = asyncio.Lock()

    async def __aenter__(self) -> Backend:
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._refresh is not None:
            self._refresh.cancel()
        self._triton.close()

    async def generate(
        self, prompt: Prompt, generation: Generation, timeout: float | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of all answers to one prompt.

        `timeout` in seconds is the client's; the gateway's own counts if it is less.
        """
        with self._running_prompt():
            seconds = self._seconds(timeout)
            async with aclosing(self._triton.generate(prompt, generation, seconds)) as pieces:
                async for piece in pieces:
                    if piece.finish_reason == "cancelled":
                        message = "the answer was cancelled at the server"
                        raise HttpError.of_kind(ErrorKind.FAILED, message)
                    self._piece_time = time.monotonic()
                    yield piece

    async def generate_all(
        self, prompts: Sequence[Prompt], generation: Generation, timeout: float | None
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield the pieces of all answers to all prompts, each with the index of its answer.

        As many sequences run at the same time as the engine computes at once. A failure of one
        ends all of them.
        """
        answers = generation.num_return_sequences or 1
        if len(prompts) == 1 and answers == 1:
            async with aclosing(self.generate(prompts[0], generation, timeout)) as pieces:
                async for piece in pieces:
                    yield 0, piece
            return
        slots = min((await self.facts()).slots, self._settings.limits.requests)
        groups = list(groups_of(prompts, generation, slots))
        deadline = time.monotonic() + self._seconds(timeout)

        def generate(prompt: Prompt, part: Generation) -> AsyncGenerator[Piece, None]:
            return self.generate(prompt, part, max(0.001, deadline - time.monotonic()))

        async with aclosing(generate_groups(groups, slots, generate)) as indexed:
            async for index, piece in indexed:
                yield index, piece

    async def score(
        self, messages: Sequence[Mapping[str, str]], turns: str, timeout: float | None = None
    ) -> list[TurnScores]:
        """Return the scores of a conversation's turns, by a reward model. See `generate`."""
        with self._running_prompt():
            scores = await self._triton.score(messages, turns, self._seconds(timeout))
        self._piece_time = time.monotonic()
        return scores

    async def kind(self) -> ModelKind:
        """Return what the engine makes. Without an answer from Triton it is what it was."""
        try:
            return (await self.facts()).kind
        except HttpError:
            return self._facts.kind if self._facts else "text"

    def _seconds(self, timeout: float | None) -> float:
        """Return the time for a request, of which a client may ask for less."""
        own_timeout = self._settings.timeouts.request
        return own_timeout if timeout is None else min(timeout, own_timeout)

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
        """Return the facts about the model.

        Triton is asked again after `FACTS_SECONDS`, and when it has closed a connection: another
        engine may answer now. Requests wait for that only if the facts are older than
        `OLD_FACTS_SECONDS`, or in doubt.
        """
        age = time.monotonic() - self._facts_time
        if self._facts is None or age > OLD_FACTS_SECONDS:
            await self._ask(OLD_FACTS_SECONDS)
        elif age > FACTS_SECONDS and not self._asking.locked():
            self._refresh = asyncio.ensure_future(self._ask(FACTS_SECONDS))
            self._refresh.add_done_callback(_ignore_failure)
        assert self._facts is not None
        return self._facts

    async def _ask(self, seconds: float) -> None:
        """Ask Triton for the facts, unless another task has done it in the last `seconds`."""
        async with self._asking:
            if self._facts is not None and time.monotonic() - self._facts_time <= seconds:
                return
            if self._failure is not None and time.monotonic() - self._failure[0] < FAILURE_SECONDS:
                raise self._failure[1]  # of a request that waited before this one
            try:
                configuration = await self._triton.configuration()
            except HttpError as error:
                self._failure = time.monotonic(), error
                raise
            self._failure = None
            if self._facts is None or configuration != self._configuration:
                self._facts = await self._facts_of(configuration)
                self._configuration = configuration
            self._facts_time = time.monotonic()

    def _doubt_facts(self) -> None:
        self._facts_time = float("-inf")

    async def _facts_of(self, configuration: Configuration) -> ModelFacts:
        parameters = configuration.parameters
        path = self._settings.tokenizer or Path(parameters["tokenizer_path"])
        try:
            tokenizer = await asyncio.to_thread(Tokenizer, path)
        except NemotronError:
            tokenizer = None
        identity = {name: parameters[name] for name in IDENTITY_PARAMETERS if name in parameters}
        max_seq_len = int(parameters["max_seq_len"])
        kind: ModelKind = "reward" if parameters.get("kind") == "reward" else "text"
        return ModelFacts(max_seq_len, configuration.slots, tokenizer, identity, kind)

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
        """Return whether the engine generates, or scores, for this request or another one.

        An overloaded engine counts as ready. A busy one may let the request wait, but then other
        answers go on.
        """
        began = time.monotonic()
        known = self._facts
        try:
            await self._send_canary(known.kind if known else "text")
        except HttpError as error:
            if error.status == ErrorKind.REFUSED.codes.http and known is None:
                # A reward model refuses to generate. Only then is Triton asked what it is.
                return await self.kind() == "reward" and await self._generates()
            if error.status == ErrorKind.TIMED_OUT.codes.http:
                return self._piece_time > began
            return error.status == ErrorKind.OVERLOADED.codes.http
        return True

    async def _send_canary(self, kind: ModelKind) -> None:
        """Let the engine generate a token or score a conversation. Raises `HttpError`."""
        seconds = self._settings.timeouts.ready
        if kind == "reward":
            await self._triton.score(EMPTY_CONVERSATION, "last", seconds)
            return
        canary = self._triton.generate(CANARY_IDS, Generation(max_tokens=1), seconds)
        async with aclosing(canary) as pieces:
            async for _piece in pieces:
                pass


def _ignore_failure(task: asyncio.Task[None]) -> None:
    """Take a failure from a task. Whoever needs the facts next meets it again."""
    if not task.cancelled():
        task.exception()
