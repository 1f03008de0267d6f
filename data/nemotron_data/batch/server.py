"""The server of a run: asked row by row, waited for when away, recognised when it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_data.batch.pace import backoff
from nemotron_data.rows import Row
from nemotron_data.transport.protocol import Answer, Failure, Transport

FIRST_DELAY, LONGEST_DELAY = 0.25, 2.0
"""Seconds between two looks for it."""


class Server:
    """NemotronError from any method when it was away for longer than `patience` seconds."""

    def __init__(
        self, transport: Transport, url: str, patience: float, tell: Callable[[str], None]
    ) -> None:
        self._transport = transport
        self._url = url
        self._patience = patience
        self._tell = tell
        self._search: asyncio.Task[None] | None = None
        self._answered_at = time.monotonic()
        self.description: dict[str, str | None] = {}
        """What it told of itself when it was first found."""

    async def aclose(self) -> None:
        """Stop looking for it, and close the connections."""
        if self._search is not None:
            self._search.cancel()
            await asyncio.wait([self._search])
        await self._transport.aclose()

    async def find(self) -> None:
        """Wait until it is there."""
        self.description = await self._describe()

    async def ask(self, row: Row, body: Mapping[str, Any]) -> Answer:
        """The answer, or Failure."""
        answer = await self._transport.ask(row, body)
        self._answered_at = time.monotonic()
        return answer

    async def find_again(self, reason: str) -> None:
        """The same after a loss, once for all rows that have noticed it."""
        if self._search is None:
            self._search = asyncio.create_task(self._find_the_same(reason))
        search = self._search
        try:
            await asyncio.shield(search)
        finally:
            if search.done() and self._search is search:
                self._search = None
                self._answered_at = time.monotonic()

    def check_patience(self, reason: str) -> None:
        """After a refusal, when no other request runs: whether there is any hope."""
        if time.monotonic() - self._answered_at > self._patience:
            raise self._given_up(reason)

    async def _find_the_same(self, reason: str) -> None:
        self._tell(f"{reason}: waiting for the server")
        found = await self._describe()
        before = self.description
        differ = [
            name
            for name, value in found.items()
            if None not in (value, before.get(name)) and value != before[name]
        ]
        if differ:
            raise NemotronError(
                f"the server came back with another {', '.join(differ)}",
                where=self._url,
                remedy="start the one that this output was begun with, or name another output",
            )
        self._tell("the server is there again")

    async def _describe(self) -> dict[str, str | None]:
        begun = time.monotonic()
        tries = 0
        while True:
            try:
                return await self._transport.describe()
            except Failure as failure:
                tries += 1
                if time.monotonic() - begun > self._patience:
                    raise self._given_up(str(failure)) from failure
                if tries == 1:
                    self._tell(str(failure))
            await asyncio.sleep(backoff(tries, FIRST_DELAY, LONGEST_DELAY, 1))

    def _given_up(self, reason: str) -> NemotronError:
        return NemotronError(
            f"{reason}, for {self._patience:g} seconds",
            where=self._url,
            remedy="see to the server and run the same command again, or raise --patience",
        )
