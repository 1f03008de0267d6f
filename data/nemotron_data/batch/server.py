"""The server of a run: wait for it when it is unreachable, and check that it is still the same."""

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
"""Bounds in seconds of the wait between two attempts to reach the server."""


class Server:
    """A server that may restart during the run.

    Every method raises `NemotronError` if the server gave no answer for more than `patience`
    seconds. `log` is called with messages for the user.
    """

    def __init__(
        self, transport: Transport, url: str, patience: float, log: Callable[[str], None]
    ) -> None:
        self._transport = transport
        self._url = url
        self._patience = patience
        self._log = log
        self._reconnection: asyncio.Task[None] | None = None
        self._answered_at = time.monotonic()
        self.description: dict[str, str | None] = {}
        """The server's description of itself when the run first reached it."""

    async def aclose(self) -> None:
        """Stop waiting for the server, and close the connections."""
        if self._reconnection is not None:
            self._reconnection.cancel()
            await asyncio.wait([self._reconnection])
        await self._transport.aclose()

    async def connect(self) -> None:
        """Wait until the server is ready, and set `description`."""
        self.description = await self._describe()

    async def send(self, row: Row, body: Mapping[str, Any]) -> Answer:
        """Return the answer to a row. Raises `Failure` if there is none."""
        answer = await self._transport.send(row, body)
        self._answered_at = time.monotonic()
        return answer

    async def reconnect(self, reason: str) -> None:
        """Wait until the server is ready again; all rows that lost it wait for the same attempts.

        Raises `NemotronError` if its description differs from the first one.
        """
        if self._reconnection is None:
            self._reconnection = asyncio.create_task(self._reconnect(reason))
        reconnection = self._reconnection
        try:
            await asyncio.shield(reconnection)
        finally:
            if reconnection.done() and self._reconnection is reconnection:
                self._reconnection = None
                self._answered_at = time.monotonic()

    def check_patience(self, reason: str) -> None:
        """Give up if no request was answered for too long.

        To be called when the server refused a request although no other one was running.
        """
        if time.monotonic() - self._answered_at > self._patience:
            raise self._no_answer(reason)

    async def _reconnect(self, reason: str) -> None:
        self._log(f"{reason}: waiting for the server")
        description, before = await self._describe(), self.description
        differences = [
            name
            for name, value in description.items()
            if None not in (value, before.get(name)) and value != before[name]
        ]
        if differences:
            raise NemotronError(
                f"the server came back with another {', '.join(differences)}",
                where=self._url,
                remedy="start the one that this output was begun with, or name another output",
            )
        self._log("the server is there again")

    async def _describe(self) -> dict[str, str | None]:
        start = time.monotonic()
        attempts = 0
        while True:
            try:
                return await self._transport.describe()
            except Failure as failure:
                attempts += 1
                if time.monotonic() - start > self._patience:
                    raise self._no_answer(str(failure)) from failure
                if attempts == 1:
                    self._log(str(failure))
            await asyncio.sleep(backoff(attempts, FIRST_DELAY, LONGEST_DELAY, 1))

    def _no_answer(self, reason: str) -> NemotronError:
        return NemotronError(
            f"{reason}, for {self._patience:g} seconds",
            where=self._url,
            remedy="see to the server and run the same command again, or raise --patience",
        )
