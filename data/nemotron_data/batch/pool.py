"""The servers of a run: which one gets the next row, and which ones have to be waited for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.openai.answer import engine_fingerprint
from nemotron_data.batch.server import Server
from nemotron_data.transport.protocol import Failure

SAME_ENGINE = "start the same one, name another output, or --allow-different-engines"
"""Remedy where a run would mix the answers of different engines."""

MOST_IGNORED = 100
"""Number of ignored keys after which the log names no more."""


class Pool:
    """Servers with the same engine.

    A server that is lost gets no rows until it is there again. `patience` are the seconds that a
    run goes on without any answer. Servers with different engines are refused, unless
    `allow_differences` is set. `changed` is called when a server may have become free.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        patience: float,
        log: Callable[[str], None],
        *,
        allow_differences: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.servers = servers
        self.changed: Callable[[], None] = lambda: None
        self.description: dict[str, str | None] = {}
        """What the servers say about themselves."""
        self._patience, self._log, self._clock = patience, log, clock
        self._allow_differences = allow_differences
        self._ignored: set[str] = set()
        """Keys of requests that the servers ignore."""
        self._waiting: dict[Server, asyncio.Task[None]] = {}
        self._last_sign = clock()
        """When a server answered or was reached for the last time."""
        self.error: BaseException | None = None
        """The error that ends the run."""

    @property
    def running(self) -> int:
        """Number of requests at all servers."""
        return sum(server.running for server in self.servers)

    async def connect(self) -> None:
        """Wait until one server is ready.

        Raises `NemotronError` if none is within the patience, or if they have different engines.
        """
        self._last_sign = self._clock()
        results = await asyncio.gather(*(self._try(server) for server in self.servers))
        for server, description in zip(self.servers, results, strict=True):
            if description is not None:
                self._take(server, description)
        for server, description in zip(self.servers, results, strict=True):
            if description is None:
                self._start(server, self._wait_for(server))
        while not any(server.is_ready for server in self.servers):
            self.check_patience()
            if self.error is not None:
                raise self.error
            await asyncio.wait(
                self._waiting.values(), timeout=0.1, return_when=asyncio.FIRST_COMPLETED
            )

    async def aclose(self) -> None:
        """Stop waiting for servers, and close the connections."""
        tasks = list(self._waiting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            await server.aclose()

    def next(self) -> Server | None:
        """Return the server with the most room, or `None` if none has any."""
        now = self._clock()
        if len(self.servers) == 1:
            return self.servers[0] if self.servers[0].room(now) else None
        best = max(self.servers, key=lambda server: server.room(now))
        return best if best.room(now) else None

    def quiet_seconds(self) -> float | None:
        """Return the seconds until a server that asked for a pause may get requests again."""
        now = self._clock()
        ends = [server.quiet_until for server in self.servers if server.quiet_until > now]
        return min(ends) - now if ends else None

    def record_answer(self, server: Server, fingerprint: str | None) -> None:
        """Note that a server answered, with the fingerprint of its engine.

        A fingerprint that is not the one of before is logged. Raises `NemotronError` if it is not
        that of the engine with which the run began, unless differences are allowed. Of servers that
        do not describe their engine, a fingerprint means less: several change it by themselves.
        """
        self._last_sign = self._clock()
        known = server.fingerprints
        if fingerprint is None or fingerprint in known:
            return
        if known:
            what = f"the engine was {' or '.join(sorted(known))} and is now {fingerprint}"
            if server.engine is not None and not self._allow_differences:
                raise NemotronError(what, where=server.url, remedy=SAME_ENGINE)
            self._log(f"{server.url}: {what}")
        known.add(fingerprint)

    def name_ignored(self, keys: Sequence[str]) -> None:
        """Log the keys that a server ignores, each once, and no more after `MOST_IGNORED`."""
        new = [key for key in keys if key not in self._ignored]
        if new and len(self._ignored) < MOST_IGNORED:
            self._ignored.update(new)
            self._log(f"the server ignores: {', '.join(new)}")

    def lose(self, server: Server, reason: str) -> None:
        """Wait for a server that was lost; it gets no rows until it is ready again."""
        if server.is_ready:
            server.is_ready = False
            server.last_failure = reason
            if not any(other.is_ready for other in self.servers):
                self._last_sign = self._clock()
            self._log(f"{reason}: waiting for the server")
            self._start(server, self._wait_for(server))

    def check_patience(self, reason: str | None = None) -> None:
        """Set `error` if no server was reached for too long.

        With a `reason`, a server is there and refused a request although no other one was running.
        """
        if reason is None:
            if any(server.is_ready for server in self.servers):
                return
            reason = self.servers[0].last_failure
        if self._clock() - self._last_sign > self._patience:
            self._fail(
                NemotronError(
                    f"{reason}, for {self._patience:g} seconds",
                    where=", ".join(server.url for server in self.servers),
                    remedy="see to the server and run the same command again, or raise --patience",
                )
            )

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.changed()

    def _start(self, server: Server, waiting: Coroutine[Any, Any, None]) -> None:
        task = self._waiting[server] = asyncio.create_task(waiting)

        def end(task: asyncio.Task[None]) -> None:
            self._waiting.pop(server, None)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fail(error)

        task.add_done_callback(end)

    async def _try(self, server: Server) -> dict[str, str | None] | None:
        with contextlib.suppress(Failure):
            return await server.describe()
        return None

    async def _wait_for(self, server: Server) -> None:
        self._take(server, await server.wait())
        self._log("the server is there again")
        self._last_sign = self._clock()
        self.changed()

    def _take(self, server: Server, description: dict[str, str | None]) -> None:
        """Mark a server as ready. Raises `NemotronError` if its engine differs from the others'."""
        before = self.description
        differences = [
            name
            for name, value in description.items()
            if None not in (value, before.get(name)) and value != before[name]
        ]
        if differences and not self._allow_differences:
            raise NemotronError(
                f"the server has another {', '.join(differences)} than the run began with",
                where=server.url,
                remedy=SAME_ENGINE,
            )
        self.description = description | {
            name: value for name, value in before.items() if value is not None
        }
        server.engine = description.get("engine")
        if server.engine is not None:
            server.fingerprints.add(engine_fingerprint(server.engine))
        server.is_ready = True
