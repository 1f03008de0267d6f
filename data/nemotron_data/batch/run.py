"""One run over the rows: send each row until it has an answer or has failed permanently."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_data.batch.admission import Admission
from nemotron_data.batch.manifest import row_seed
from nemotron_data.batch.pace import backoff
from nemotron_data.batch.progress import Progress
from nemotron_data.batch.result_line import failure_line, result_line
from nemotron_data.batch.server import Server
from nemotron_data.options import Value
from nemotron_data.rows import BadRow, Row, Source, digest
from nemotron_data.transport.protocol import Failure

FIRST_DELAY, LONGEST_DELAY = 0.25, 15.0
"""Bounds in seconds of the wait between two attempts for a row."""
UNREACHABLE_FACTOR = 4
"""A row may meet an unreachable server this many times as often as it may fail on its own, because
an unreachable server is seldom the row's fault."""
TICK_SECONDS = 0.5
YIELD_ROWS = 1000
"""The event loop may handle signals at least once in this many rows of the input."""


class Interrupted(NemotronError):
    """A signal ended the run; everything that was written stays."""

    kind = ErrorKind.INTERRUPTED


class Results(Protocol):
    """A destination of result lines."""

    def append(self, line: bytes) -> None: ...

    def tick(self) -> None: ...


@dataclass(frozen=True)
class Work:
    """The rows to send and the destinations of their results."""

    source: Source
    finished: set[int]
    """Digests of the custom_ids that have a result already."""
    defaults: Mapping[str, Value]
    """Keys of a request body for rows that do not set them."""
    seed: int | None
    attempts: int
    results: Results
    failures: Results


@dataclass
class Counts:
    """Numbers of rows of the whole output, and of answer tokens of this run."""

    finished: int
    failed: int = 0
    tokens: int = 0


class Run:
    """A run, whose method `run` may be called once."""

    def __init__(
        self, work: Work, server: Server, admission: Admission, progress: Progress
    ) -> None:
        self._work = work
        self._server = server
        self._admission = admission
        self._progress = progress
        self.counts = Counts(finished=len(work.finished))
        self._tasks: set[asyncio.Task[None]] = set()
        """One task for each row that is being handled."""
        self._sending: set[asyncio.Task[None]] = set()
        """The tasks whose request is at the server."""
        self._task_ended = asyncio.Event()
        self._stopping = False
        self._error: BaseException | None = None
        """The first error that ends the run."""

    async def run(self) -> None:
        """Handle every row.

        Raises `NemotronError` if the run cannot continue, and is cancelled after a signal.
        """
        ticker = asyncio.create_task(self._tick())
        ticker.add_done_callback(self._end_task)
        try:
            await self._start_tasks()
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            remaining = [ticker, *self._tasks]
            for task in remaining:
                task.cancel()
            await asyncio.gather(*remaining, return_exceptions=True)
        if self._error is not None:
            raise self._error
        if self._stopping:
            raise asyncio.CancelledError

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM, and raise `Interrupted` when the run has ended because of one.

        The first signal lets the requests finish that are at the server; the second cancels them.
        """
        loop = asyncio.get_running_loop()
        main = asyncio.current_task()
        assert main is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, main)
        try:
            yield
        except asyncio.CancelledError:
            raise Interrupted(
                f"interrupted with {self.counts.finished} of {self._work.source.rows} rows done",
                remedy="run the same command again to go on",
            ) from None
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self, main: asyncio.Task[object]) -> None:
        if self._stopping or not self._sending:
            main.cancel()
            return
        self._stopping = True
        self._task_ended.set()
        for task in self._tasks - self._sending:
            task.cancel()
        self._progress.log(f"finishing {len(self._sending)} rows; Ctrl-C again drops them")

    async def _start_tasks(self) -> None:
        """Start a task for each row, but at most twice as many as may send a request at once."""
        for row in self._rows():
            if row is None:
                await asyncio.sleep(0)
                continue
            while len(self._tasks) >= 2 * self._admission.limit and not self._is_ending():
                self._task_ended.clear()
                await self._task_ended.wait()
            if self._is_ending():
                return
            task = asyncio.create_task(self._handle(row))
            self._tasks.add(task)
            task.add_done_callback(self._end_task)
            await asyncio.sleep(0)

    def _rows(self) -> Iterator[Row | None]:
        """Yield the rows to send, and `None` every `YIELD_ROWS` rows."""
        for count, row in enumerate(self._work.source.read()):
            if isinstance(row, BadRow):
                self._fail(row)
            elif digest(row.custom_id) not in self._work.finished:
                yield row
            if count % YIELD_ROWS == 0:
                yield None

    def _is_ending(self) -> bool:
        return self._stopping or self._error is not None

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._task_ended.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
            for other in self._tasks:
                other.cancel()

    async def _handle(self, row: Row) -> None:
        """Send a row until it has an answer or has failed permanently."""
        body = self._body(row)
        attempts = unreachable = failed = 0
        while not self._is_ending():
            try:
                tokens, line = await self._send(row, body)
            except Failure as failure:
                kind, most = failure.kind, self._work.attempts
                attempts += 1
                unreachable += kind is ErrorKind.UNREACHABLE
                failed += kind in (ErrorKind.FAILED, ErrorKind.TIMED_OUT)
                if (
                    kind is ErrorKind.REFUSED
                    or failed >= most
                    or unreachable >= UNREACHABLE_FACTOR * most
                ):
                    self._fail(row, failure)
                    return
                if self._is_ending():
                    return
                if kind is ErrorKind.UNREACHABLE:
                    await self._server.reconnect(str(failure))
                draw = random.random()  # noqa: S311  # spreads load, protects nothing
                await asyncio.sleep(backoff(attempts, FIRST_DELAY, LONGEST_DELAY, draw))
            else:
                self._work.results.append(line)
                self.counts.finished += 1
                self.counts.tokens += tokens
                self._progress.advance(tokens=tokens)
                return

    def _body(self, row: Row) -> dict[str, object]:
        defaults: dict[str, object] = dict(self._work.defaults)
        if "max_completion_tokens" in row.body:
            defaults.pop("max_tokens", None)
        if self._work.seed is not None:
            defaults["seed"] = row_seed(self._work.seed, row.custom_id)
        return {**defaults, **row.body}

    async def _send(self, row: Row, body: Mapping[str, object]) -> tuple[int, bytes]:
        """Return the number of tokens of the answer and its result line. Raises `Failure`."""
        task = asyncio.current_task()
        assert task is not None
        async with self._admission.admit() as permit:
            if self._stopping:
                raise asyncio.CancelledError
            self._sending.add(task)
            try:
                answer = await self._server.send(row, body)
                line = result_line(row.custom_id, answer)
            except Failure as failure:
                if failure.kind is ErrorKind.OVERLOADED:
                    self._admission.record_overload(permit.limit, failure.retry_after)
                    if self._admission.running == 1:
                        self._server.check_patience(str(failure))
                raise
            finally:
                self._sending.discard(task)
            permit.prompt_tokens = answer.token_count("prompt_tokens")
            permit.completion_tokens = answer.token_count("completion_tokens")
        return permit.completion_tokens, line

    def _fail(self, row: Row | BadRow, failure: Failure | None = None) -> None:
        self.counts.failed += 1
        self._progress.advance(failed=1)
        self._work.failures.append(failure_line(row, failure))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._work.results.tick()
            self._progress.tick(self._admission.running)
