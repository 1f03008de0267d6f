"""One run over the rows: send each row until it has an answer or has failed permanently."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import itertools
import random
import time
from collections.abc import Iterator
from http import HTTPStatus

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_data.batch.interruption import Interrupted, Interruption
from nemotron_data.batch.opening import Opening
from nemotron_data.batch.pace import backoff
from nemotron_data.batch.pool import Pool
from nemotron_data.batch.progress import Progress
from nemotron_data.batch.rates import Rates
from nemotron_data.batch.result_line import NotAccepted, result_line
from nemotron_data.batch.server import Server
from nemotron_data.batch.statistics import Statistics
from nemotron_data.batch.work import Counts, Pending, Work
from nemotron_data.rows.row import BadRow, Row
from nemotron_data.transport.protocol import Answer, Failure

FIRST_DELAY, LONGEST_DELAY = 0.25, 15.0
"""Bounds in seconds of the wait between two attempts for a row."""
UNREACHABLE_FACTOR = 4
"""A row may meet an unreachable server this many times as often as it may fail on its own, because
an unreachable server is seldom the row's fault."""
TICK_SECONDS = 0.5
YIELD_STARTS = 16
"""The event loop handles answers at least once in this many requests that start."""


class Run:
    """A run, whose method `run` may be called once."""

    def __init__(
        self,
        work: Work,
        pool: Pool,
        rates: Rates,
        progress: Progress,
        statistics: Statistics,
        finished: int,
    ) -> None:
        self._work, self._pool, self._rates = work, pool, rates
        self._progress, self._statistics = progress, statistics
        self.counts = Counts(finished)
        self._opening = Opening()
        self._delayed: list[tuple[float, int, Pending]] = []
        """Heap of rows that are sent again at a time."""
        self._order = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        """One task for each request at a server."""
        self._lines: list[bytes] = []
        """Results that are not written yet."""
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._error: BaseException | None = None
        """The first error that ends the run."""
        pool.changed = self._wake.set

    async def run(self) -> None:
        """Handle every row.

        Raises `NemotronError` if the run cannot continue, and is cancelled after an interruption.
        """
        ticker = asyncio.create_task(self._tick())
        ticker.add_done_callback(self._end_task)
        self._statistics.start()
        try:
            await self._send_all()
            while self._tasks and self._error is None:
                self._wake.clear()
                await self._wake.wait()
        finally:
            remaining = [ticker, *self._tasks]
            for task in remaining:
                task.cancel()
            await asyncio.gather(*remaining, return_exceptions=True)
            self._write_lines()
        if (error := self._error or self._pool.error) is not None:
            raise error
        if self._is_stopping:
            raise asyncio.CancelledError

    @contextlib.contextmanager
    def ended_by(self, interruption: Interruption) -> Iterator[None]:
        """Let `interruption` end the run, and raise `Interrupted` when it has ended because of it.

        The first time the requests that are at the server finish; the second time they are dropped.
        """
        main = asyncio.current_task()
        assert main is not None
        with interruption.calls(functools.partial(self._stop, main)):
            try:
                yield
            except asyncio.CancelledError:
                raise Interrupted(
                    f"interrupted with {self.counts.finished} of {self._work.total} rows done",
                    remedy="run the same command again to go on",
                ) from None

    def _stop(self, main: asyncio.Task[object]) -> None:
        if self._is_stopping or not self._tasks:
            main.cancel()
            return
        self._is_stopping = True
        self._wake.set()
        self._progress.log(f"finishing {len(self._tasks)} rows; Ctrl-C again drops them")

    async def _send_all(self) -> None:
        """Start a task for each request, as soon as a server and the rates allow it."""
        rows = self._good_rows()
        following = next(rows, None)
        for started in itertools.count(1):
            if started % YIELD_STARTS == 0:
                await asyncio.sleep(0)
            while following is None and not self._is_due():
                if not self._tasks and not self._delayed:
                    return
                await self._wait(self._next_due())
                if self._is_ending():
                    return
            while (server := self._free_server()) is None:
                await self._wait(self._next_chance())
                if self._is_ending():
                    return
            if self._is_ending():
                return
            if self._is_due():
                _due, _order, pending = heapq.heappop(self._delayed)
            elif following is not None:
                pending, following = Pending(following), next(rows, None)
            else:
                continue
            self._start(pending, server)

    def _good_rows(self) -> Iterator[Row]:
        for row in self._work.rows:
            if isinstance(row, BadRow):
                self._fail(row)
            else:
                yield row

    def _is_due(self) -> bool:
        """Return whether a row is due to be sent again."""
        return bool(self._delayed) and self._delayed[0][0] <= time.monotonic()

    def _next_due(self) -> float | None:
        return self._delayed[0][0] - time.monotonic() if self._delayed else None

    def _free_server(self) -> Server | None:
        if len(self._tasks) >= self._opening.limit or self._rates.wait() > 0:
            return None
        return self._pool.next()

    def _next_chance(self) -> float | None:
        """Return the seconds until a request may be sent although nothing else happens."""
        waits = [wait for wait in (self._rates.wait(), self._pool.quiet_seconds()) if wait]
        return min(waits) if waits else None

    async def _wait(self, seconds: float | None) -> None:
        """Wait until a request ends, a server comes back, the run ends, or `seconds` are over."""
        self._wake.clear()
        if self._is_ending():
            return
        if seconds is None:
            await self._wake.wait()
        else:
            handle = asyncio.get_running_loop().call_later(max(seconds, 0), self._wake.set)
            try:
                await self._wake.wait()
            finally:
                handle.cancel()

    def _is_ending(self) -> bool:
        return self._is_stopping or self._error is not None or self._pool.error is not None

    def _start(self, pending: Pending, server: Server) -> None:
        server.running += 1
        expected = self._rates.take()
        task = asyncio.create_task(self._handle(pending, server, expected))
        self._tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        """End the run, and drop what is at the servers."""
        self._error = self._error or error
        for task in self._tasks:
            task.cancel()
        self._wake.set()

    async def _handle(self, pending: Pending, server: Server, expected_tokens: float) -> None:
        """Send a row once; store its result, or decide whether it is sent again."""
        row, limit, used = pending.row, server.concurrency.limit, None
        start = time.monotonic()
        try:
            answer = await server.send(row, self._work.requests.body(row, pending.answers))
            seconds = time.monotonic() - start
            tokens = answer.token_count("completion_tokens")
            used = answer.token_count("prompt_tokens") + tokens
            server.concurrency.record_answer(seconds, tokens, limit)
            self._pool.record_answer(server, answer.fingerprint)
            self._pool.name_ignored(answer.ignored_keys)
            self._opening.record_success()
            self._judge(pending, answer, seconds)
        except Failure as failure:
            await self._handle_failure(pending, server, limit, failure)
        finally:
            server.running -= 1
            self._rates.settle(expected_tokens, used)

    def _judge(self, pending: Pending, answer: Answer, seconds: float) -> None:
        reason = self._work.acceptance.reason_against(answer)
        self._statistics.record(answer, seconds, reason)
        if reason is None:
            self._store(result_line(pending.row, answer))
            self.counts.finished += 1
            self._progress.advance(tokens=answer.token_count("completion_tokens"))
        elif pending.answers < self._work.attempts and self._work.requests.can_differ(pending.row):
            pending.answers += 1
            self._send_again(pending, 0)
        else:
            self._fail(pending.row, NotAccepted(reason, answer))

    def _store(self, line: bytes) -> None:
        """Append a line together with the others of this pass of the event loop."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._write_lines)
        self._lines.append(line)

    def _write_lines(self) -> None:
        lines, self._lines = self._lines, []
        try:
            if lines:
                self._work.results.append(b"".join(lines))
        except NemotronError as error:
            self._end(error)

    async def _handle_failure(
        self, pending: Pending, server: Server, limit: int, failure: Failure
    ) -> None:
        kind, most = failure.kind, self._work.attempts
        pending.attempts += 1
        pending.unreachable += kind is ErrorKind.UNREACHABLE
        pending.failed += kind in (ErrorKind.FAILED, ErrorKind.TIMED_OUT)
        if kind is ErrorKind.REFUSED:
            await self._check_model(pending.row, server, failure)
            self._fail(pending.row, failure)
            if (error := self._opening.record_refusal(failure)) is not None:
                self._end(error)
            return
        if kind is ErrorKind.OVERLOADED:
            self._statistics.overloads += 1
            server.record_overload(limit, failure.retry_after)
            if self._pool.running == 1:
                self._pool.check_patience(str(failure))
        if kind is ErrorKind.UNREACHABLE:
            self._pool.lose(server, str(failure))
        if pending.failed >= most or pending.unreachable >= UNREACHABLE_FACTOR * most:
            self._fail(pending.row, failure)
            return
        if kind is ErrorKind.UNREACHABLE and pending.unreachable == 1:
            self._send_again(pending, 0)  # another server may take it at once
            return
        draw = random.random()  # noqa: S311  # spreads load, protects nothing
        self._send_again(pending, backoff(pending.attempts, FIRST_DELAY, LONGEST_DELAY, draw))

    def _send_again(self, pending: Pending, delay: float) -> None:
        self._statistics.retries += 1
        due = time.monotonic() + delay
        heapq.heappush(self._delayed, (due, next(self._order), pending))

    async def _check_model(self, row: Row, server: Server, failure: Failure) -> None:
        """End the run if its model does not exist, and name the server's models."""
        name = self._work.requests.defaults.get("model")
        if failure.status != HTTPStatus.NOT_FOUND or "model" in row.body:
            return
        models = await server.models()
        if models and name not in models:
            raise NemotronError(
                f"there is no model {name!r}, but {', '.join(models[:5])}",
                where=server.url,
                remedy="name one with --model",
            )

    def _fail(self, row: Row | BadRow, failure: Failure | NotAccepted | None = None) -> None:
        self.counts.failed += 1
        self._statistics.failed += 1
        self._progress.advance(failed=1)
        self._work.failures.append(self._work.failure_line(row, failure))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._work.results.tick()
            self._pool.check_patience()
            if self._pool.error is not None:
                raise self._pool.error
            self._progress.tick(self._pool.running)
