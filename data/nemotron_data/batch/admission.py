"""Admission of requests: how many run at once, and how many requests and tokens per minute."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from nemotron_data.batch.pace import Bucket, Concurrency

EXPECTED_TOKENS = 256
"""Tokens that a row is expected to need before any row has been answered."""


@dataclass
class Permit:
    """The permission to send one request, and what the request used."""

    limit: int
    """Concurrency limit when the request was sent."""
    prompt_tokens: int = 0
    """Set by the caller from the answer."""
    completion_tokens: int = 0
    """Set by the caller from the answer."""


class Admission:
    """Decides when a request may be sent, and learns from each request that it admitted.

    `clock` and `sleep` are seconds of the same clock.
    """

    def __init__(
        self,
        max_concurrency: int,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.running = 0
        """Number of requests that are admitted and have not ended."""
        self._clock, self._sleep = clock, sleep
        self._concurrency = Concurrency(max_concurrency)
        self._changed = asyncio.Condition()
        now = self._quiet_until = clock()
        self._requests = Bucket(requests_per_minute, now)
        self._tokens = Bucket(tokens_per_minute, now)
        self._answers = self._used_tokens = 0

    @property
    def limit(self) -> int:
        """Number of requests that may run at once."""
        return self._concurrency.limit

    @contextlib.asynccontextmanager
    async def admit(self) -> AsyncIterator[Permit]:
        """Wait until one more request may run; it has ended when the context ends.

        A context that ends with an exception counts as a request that used no tokens, and its
        duration is ignored.
        """
        async with self._changed:
            while self.running >= self.limit:
                await self._changed.wait()
            self.running += 1
        try:
            expected = self._used_tokens / self._answers if self._answers else EXPECTED_TOKENS
            while wait := self._wait(expected):
                await self._sleep(wait)
            self._requests.take(1)
            self._tokens.take(expected)
            permit = Permit(self.limit)
            start = self._clock()
            try:
                yield permit
            except BaseException:
                self._tokens.take(-expected)
                raise
            used = permit.prompt_tokens + permit.completion_tokens
            self._tokens.take(used - expected)
            self._answers += 1
            self._used_tokens += used
            seconds = self._clock() - start
            self._concurrency.record_answer(seconds, permit.completion_tokens, permit.limit)
        finally:
            async with self._changed:
                self.running -= 1
                self._changed.notify(max(1, self.limit - self.running))

    def record_overload(self, limit: int, retry_after: float | None) -> None:
        """Lower the limit because the server refused a request that was sent at `limit`.

        No request is sent for `retry_after` seconds.
        """
        self._concurrency.record_overload(limit)
        if retry_after is not None:
            self._quiet_until = max(self._quiet_until, self._clock() + retry_after)

    def _wait(self, tokens: float) -> float:
        """Return the seconds until a request of so many tokens may be sent."""
        now = self._clock()
        waits = (self._requests.wait(1, now), self._tokens.wait(tokens, now))
        return max(*waits, self._quiet_until - now, 0.0)
