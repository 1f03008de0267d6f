"""How much runs at the same time: limits by tokens, for everybody and for each key.

Requests of clients run at once or are refused. Those in the background, of batches, wait for their
turn, and leave a part of everything to the others.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from nemotron_core.errors import ErrorKind
from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_gateway.keys import ApiKey
from nemotron_gateway.request_record import RequestRecord

CHARACTERS_PER_TOKEN = 4
"""For the estimate of a prompt's tokens. The engine's own check is exact."""
FREE_PART = 8
"""One part in so many of each limit is left free by requests in the background."""


@dataclass
class _Load:
    prompts: int = 0
    tokens: int = 0


@dataclass
class _Waiting:
    """A request in the background that waits for its turn."""

    key: ApiKey | None
    prompts: int
    tokens: int
    slots: int
    turn: asyncio.Future[None]


class Admission:
    """Counts the tokens that running requests may still need. More than `tokens` are refused."""

    def __init__(self, tokens: int) -> None:
        self._limit = tokens
        self._all = _Load()
        self._of_key: defaultdict[bytes, _Load] = defaultdict(_Load)
        self._waiting: list[_Waiting] = []
        self._is_closed = False

    @asynccontextmanager
    async def enter(self, record: RequestRecord, prompts: int, tokens: int) -> AsyncIterator[None]:
        """Count a request inside the context: see `admit` and `admit_in_turn`."""
        key, slots = record.key, record.background_slots
        if slots is None:
            with self.admit(key, prompts, tokens):
                yield
        else:
            async with self.admit_in_turn(key, prompts, tokens, slots):
                yield

    @contextmanager
    def admit(self, key: ApiKey | None, prompts: int, tokens: int) -> Iterator[None]:
        """Count a request inside the context.

        Raises `HttpError` 429 if it is too much now, and 400 if it is more than its key may have.
        """
        _check_possible(key, prompts, tokens)
        # What runs alone is within other limits; it must be possible at all.
        if self._all.tokens and self._all.tokens + tokens > self._limit:
            raise _overloaded(f"running requests need {self._all.tokens} tokens already")
        if key is not None:
            load = self._of_key[key.digest]
            if key.requests is not None and load.prompts + prompts > key.requests:
                raise _overloaded(f"this key may have {key.requests} prompts at a time")
            if key.tokens is not None and load.tokens + tokens > key.tokens:
                raise _overloaded(f"this key may have {key.tokens} tokens at a time")
        self._count(key, prompts, tokens)
        try:
            yield
        finally:
            self._count(key, -prompts, -tokens)

    @asynccontextmanager
    async def admit_in_turn(
        self, key: ApiKey | None, prompts: int, tokens: int, slots: int
    ) -> AsyncIterator[None]:
        """Count a request in the background inside the context, and wait for its turn before.

        It comes when the engine has room for it among its `slots`, and some besides. Raises
        `HttpError` 503 if the gateway shuts down before, and 400 as `admit` does.
        """
        _check_possible(key, prompts, tokens)
        if self._is_closed:
            raise _shutting_down()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request = _Waiting(key, prompts, tokens, slots, turn)
        self._waiting.append(request)
        self._give_turns()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._count(key, -prompts, -tokens)
            elif request in self._waiting:
                self._waiting.remove(request)

    def close(self) -> None:
        """Refuse the requests in the background that wait, and all later ones."""
        self._is_closed = True
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            if not request.turn.done():
                request.turn.set_exception(_shutting_down())

    def _count(self, key: ApiKey | None, prompts: int, tokens: int) -> None:
        loads = [self._all]
        if key is not None:
            loads.append(self._of_key[key.digest])
        for load in loads:
            load.prompts += prompts
            load.tokens += tokens
        if key is not None and not loads[-1].prompts:
            self._of_key.pop(key.digest, None)
        if prompts < 0:
            self._give_turns()

    def _give_turns(self) -> None:
        """Let those requests begin for which there is room, the oldest first."""
        for request in list(self._waiting):
            if request.turn.done():  # cancelled
                self._waiting.remove(request)
            elif self._has_room(request):
                self._waiting.remove(request)
                self._count(request.key, request.prompts, request.tokens)
                request.turn.set_result(None)
            elif not _fits(self._all, request, request.slots, self._limit):
                return

    def _has_room(self, request: _Waiting) -> bool:
        if not _fits(self._all, request, request.slots, self._limit):
            return False
        key = request.key
        if key is None or key.digest not in self._of_key:
            return True
        return _fits(self._of_key[key.digest], request, key.requests, key.tokens)


def _fits(load: _Load, request: _Waiting, prompts: int | None, tokens: int | None) -> bool:
    """Return whether a request may run beside a load, whose limits are `prompts` and `tokens`.

    What asks for much at once needs only half of the room to begin: it would wait for ever
    otherwise. The gateway gives its sequences to the engine one after another.
    """
    if not load.prompts:
        return True
    for used, more, limit in (
        (load.prompts, request.prompts, prompts),
        (load.tokens, request.tokens, tokens),
    ):
        if limit is not None:
            most = max(1, limit - max(1, limit // FREE_PART))
            if used + min(more, max(1, most // 2)) > most:
                return False
    return True


def _check_possible(key: ApiKey | None, prompts: int, tokens: int) -> None:
    """Raise `HttpError` 400 if a request is more than its key may ever have."""
    for limit, asked, what in (
        (None if key is None else key.requests, prompts, "prompts"),
        (None if key is None else key.tokens, tokens, "tokens"),
    ):
        if limit is not None and asked > limit:
            raise bad_request(
                f"this key may have {limit} {what} at a time, and this request asks for {asked}",
                code="key_limit_exceeded",
            )


def estimate_tokens(prompt: str | list[int]) -> int:
    """Return about how many tokens a prompt has."""
    return 1 + len(prompt) // CHARACTERS_PER_TOKEN if isinstance(prompt, str) else len(prompt)


def _overloaded(message: str) -> HttpError:
    return HttpError.of_kind(ErrorKind.OVERLOADED, message)


def _shutting_down() -> HttpError:
    return HttpError.of_kind(ErrorKind.SHUTTING_DOWN, "the gateway shuts down")
