"""When a request may be sent: places for so many at once, and so much a minute."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from nemotron_data.batch.pace import Bucket, Concurrency

GUESSED_TOKENS = 256
"""What a row is thought to take of the tokens a minute before any has been answered."""


@dataclass
class Place:
    """What a request holds while it runs."""

    limit: int
    """Of the concurrency when it was sent."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """To be set from the answer."""


class Admission:
    """Learns from each request that goes through it."""

    def __init__(
        self, most: int, requests_per_minute: float | None, tokens_per_minute: float | None
    ) -> None:
        self.running = 0
        self._concurrency = Concurrency(most)
        self._changed = asyncio.Condition()
        now = self._quiet_until = time.monotonic()
        self._requests = Bucket(requests_per_minute, now)
        self._tokens = Bucket(tokens_per_minute, now)
        self._answers = self._used = 0

    @property
    def limit(self) -> int:
        return self._concurrency.limit

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """Waits for one."""
        async with self._changed:
            while self.running >= self.limit:
                await self._changed.wait()
            self.running += 1
        try:
            guess = self._used / self._answers if self._answers else GUESSED_TOKENS
            while wait := self._wait(guess):
                await asyncio.sleep(wait)
            self._requests.take(1)
            self._tokens.take(guess)
            place = Place(self.limit)
            begun = time.monotonic()
            try:
                yield place
            except BaseException:
                self._tokens.take(-guess)
                raise
            used = place.prompt_tokens + place.completion_tokens
            self._tokens.take(used - guess)
            self._answers += 1
            self._used += used
            seconds = time.monotonic() - begun
            self._concurrency.answered(seconds, place.completion_tokens, place.limit)
        finally:
            async with self._changed:
                self.running -= 1
                self._changed.notify(max(1, self.limit - self.running))

    def overloaded(self, limit: int, after: float | None) -> None:
        """A request sent at that limit was refused; nothing is sent for `after` seconds."""
        self._concurrency.overloaded(limit)
        if after is not None:
            self._quiet_until = max(self._quiet_until, time.monotonic() + after)

    def _wait(self, tokens: float) -> float:
        now = time.monotonic()
        waits = (self._requests.wait(1, now), self._tokens.wait(tokens, now))
        return max(*waits, self._quiet_until - now, 0.0)
