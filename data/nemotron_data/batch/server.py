"""One server of a run: how many requests it gets, and whether it is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from nemotron_data.batch.pace import Concurrency, backoff
from nemotron_data.rows.row import Row
from nemotron_data.transport.protocol import Answer, Failure, Transport

FIRST_DELAY, LONGEST_DELAY = 0.25, 2.0
"""Bounds in seconds of the wait between two attempts to reach the server."""


class Server:
    """A server that may restart during the run. `log` is called with messages for the user."""

    def __init__(
        self,
        url: str,
        transport: Transport,
        concurrency: Concurrency,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.concurrency = concurrency
        self.running = 0
        """Number of requests at the server."""
        self.is_ready = False
        self.quiet_until = 0.0
        """Time until which the server asked for no requests."""
        self.engine: str | None = None
        """Hash of its engine, if it describes that."""
        self.fingerprints: set[str] = set()
        """Names of its engine, as its description and its answers report them."""
        self.last_failure = ""
        """Why it was not reached the last time."""
        self._transport, self._log, self._clock = transport, log, clock

    def room(self, now: float) -> float:
        """Return the fraction of the limit that is free now; 0 if no request may be sent."""
        limit = self.concurrency.limit
        if not self.is_ready or self.running >= limit or now < self.quiet_until:
            return 0.0
        return 1 - self.running / limit

    async def send(self, row: Row, body: Mapping[str, Any]) -> Answer:
        """Return the answer to a row. Raises `Failure` if there is none."""
        return await self._transport.send(row, body)

    def record_overload(self, limit: int, retry_after: float | None) -> None:
        """Lower the limit because a request that was sent at `limit` was refused.

        No request is sent for `retry_after` seconds.
        """
        self.concurrency.record_overload(limit)
        if retry_after is not None:
            self.quiet_until = max(self.quiet_until, self._clock() + retry_after)

    async def models(self) -> list[str]:
        """Return the names of the server's models, or an empty list if it is not reached."""
        try:
            return await self._transport.models()
        except Failure:
            return []

    async def describe(self) -> dict[str, str | None]:
        """Return the server's description of itself. Raises `Failure` if it is not reached."""
        try:
            return await self._transport.describe()
        except Failure as failure:
            self.last_failure = str(failure)
            raise

    async def wait(self) -> dict[str, str | None]:
        """Wait for the server, for as long as it takes, and return its description of itself."""
        attempts = 0
        while True:
            try:
                return await self.describe()
            except Failure as failure:
                attempts += 1
                if attempts == 1:
                    self._log(str(failure))
            await asyncio.sleep(backoff(attempts, FIRST_DELAY, LONGEST_DELAY, 1))

    async def aclose(self) -> None:
        await self._transport.aclose()
