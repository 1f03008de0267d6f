"""One run over the rows: each is asked, and asked again, until it has an answer or a reason."""

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
from nemotron_data.batch.manifest import Value, row_seed
from nemotron_data.batch.pace import backoff
from nemotron_data.batch.progress import Progress
from nemotron_data.batch.result_line import failure_line, result_line
from nemotron_data.batch.server import Server
from nemotron_data.rows import BadRow, Row, Source, digest
from nemotron_data.transport.protocol import Failure, Kind

FIRST_DELAY, LONGEST_DELAY = 0.25, 15.0
"""Seconds between two tries of a row."""
LOST_FACTOR = 4
"""So many more tries when the server was lost, which is seldom the row's fault."""
TICK_SECONDS = 0.5
PAUSE_ROWS = 1000
"""After so many rows that need no asking, signals get their chance."""


class Interrupted(NemotronError):
    """Ended by a signal; what was written stays."""

    kind = ErrorKind.INTERRUPTED


class Results(Protocol):
    """Where results go, line by line."""

    def append(self, line: bytes) -> None: ...

    def tick(self) -> None: ...


@dataclass(frozen=True)
class Work:
    """What to ask, and where to write."""

    source: Source
    finished: set[int]
    """Digests of the ids that have a result already."""
    defaults: Mapping[str, Value]
    seed: int | None
    attempts: int
    results: Results
    failures: Results


@dataclass
class Counts:
    """Rows of the whole output, tokens of this run."""

    finished: int
    failed: int = 0
    tokens: int = 0


class Run:
    """Call `run` once."""

    def __init__(
        self, work: Work, server: Server, admission: Admission, progress: Progress
    ) -> None:
        self._work = work
        self._server = server
        self._admission = admission
        self._progress = progress
        self.counts = Counts(finished=len(work.finished))
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._stopping = False
        self._broken: BaseException | None = None

    async def run(self) -> None:
        """Every row. NemotronError if it cannot go on, Interrupted after a signal."""
        ticking = asyncio.create_task(self._tick())
        ticking.add_done_callback(self._done)
        try:
            await self._start_all()
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            ticking.cancel()
            rest = [ticking, *self._tasks]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
        if self._broken is not None:
            raise self._broken
        if self._stopping:
            raise asyncio.CancelledError

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """The first lets requests finish that are at the server, the second drops them."""
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
        if self._stopping or not self._asking:
            main.cancel()
            return
        self._stopping = True
        self._freed.set()
        for task in self._tasks - self._asking:
            task.cancel()
        self._progress.tell(f"finishing {len(self._asking)} rows; Ctrl-C again drops them")

    async def _start_all(self) -> None:
        """A task for each row; no more of them than run and could run next."""
        for row in self._rows():
            if row is None:
                await asyncio.sleep(0)
                continue
            while len(self._tasks) >= 2 * self._admission.limit and not self._is_ending():
                self._freed.clear()
                await self._freed.wait()
            if self._is_ending():
                return
            task = asyncio.create_task(self._answer(row))
            self._tasks.add(task)
            task.add_done_callback(self._done)
            await asyncio.sleep(0)

    def _rows(self) -> Iterator[Row | None]:
        """Those to ask; None now and then."""
        for count, row in enumerate(self._work.source.read()):
            if isinstance(row, BadRow):
                self._fail(row)
            elif digest(row.custom_id) not in self._work.finished:
                yield row
            if count % PAUSE_ROWS == 0:
                yield None

    def _is_ending(self) -> bool:
        return self._stopping or self._broken is not None

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._freed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = self._broken or error
            for other in self._tasks:
                other.cancel()

    async def _answer(self, row: Row) -> None:
        """Until there is an answer, or a failure that is the row's own."""
        body = self._body(row)
        tries = lost = failed = 0
        while not self._is_ending():
            try:
                tokens, line = await self._ask(row, body)
            except Failure as failure:
                tries += 1
                lost += failure.kind is Kind.LOST
                failed += failure.kind is Kind.FAILED
                most = self._work.attempts
                if failure.kind is Kind.REFUSED or failed >= most or lost >= LOST_FACTOR * most:
                    self._fail(row, failure)
                    return
                if self._is_ending():
                    return
                if failure.kind is Kind.LOST:
                    await self._server.find_again(str(failure))
                draw = random.random()  # noqa: S311  # spreads load, protects nothing
                await asyncio.sleep(backoff(tries, FIRST_DELAY, LONGEST_DELAY, draw))
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

    async def _ask(self, row: Row, body: Mapping[str, object]) -> tuple[int, bytes]:
        """Tokens and line of the answer."""
        task = asyncio.current_task()
        assert task is not None
        async with self._admission.place() as place:
            if self._stopping:
                raise asyncio.CancelledError
            self._asking.add(task)
            try:
                answer = await self._server.ask(row, body)
                line = result_line(row.custom_id, answer)
            except Failure as failure:
                if failure.kind is Kind.OVERLOADED:
                    self._admission.overloaded(place.limit, failure.after)
                    if self._admission.running == 1:
                        self._server.check_patience(str(failure))
                raise
            finally:
                self._asking.discard(task)
            place.prompt_tokens = answer.tokens("prompt_tokens")
            place.completion_tokens = answer.tokens("completion_tokens")
        return place.completion_tokens, line

    def _fail(self, row: Row | BadRow, failure: Failure | None = None) -> None:
        self.counts.failed += 1
        self._progress.advance(failed=1)
        self._work.failures.append(failure_line(row, failure))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._work.results.tick()
            self._progress.tick(self._admission.running)
