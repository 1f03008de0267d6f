"""Progress of a batch on standard error: rows, tokens a second, errors, time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_SECONDS = 10.0
"""How often a log, which cannot show a bar, gets a line."""


class Progress:
    """A bar on a terminal, a line now and then in a log."""

    def __init__(self, what: str, total: int, finished: int) -> None:
        self._what, self._total, self._before = what, total, finished
        self._rows = self._tokens = self._failed = 0
        self._begun = self._told = time.monotonic()
        console = Console(stderr=True)
        self._bar: Bar | None = None
        if console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(what, total=total, completed=finished, told="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self.tick(0)
            self._bar.stop()
        elif kind is None:
            self._line(0)

    def advance(self, *, tokens: int = 0, failed: int = 0) -> None:
        """One more row has an answer of so many tokens, or has failed."""
        self._rows += 1
        self._tokens += tokens
        self._failed += failed

    def tell(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(f"{self._what}: {text}", file=sys.stderr, flush=True)

    def tick(self, running: int) -> None:
        """Show where it is; `running` requests are at the server."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, told=self._numbers(running))
        elif time.monotonic() - self._told >= LINE_SECONDS:
            self._line(running)

    @property
    def _done(self) -> int:
        return self._before + self._rows

    def _numbers(self, running: int) -> str:
        seconds = max(1e-9, time.monotonic() - self._begun)
        return f"{self._tokens / seconds:,.0f} tokens/s, {running} running, {self._failed} failed"

    def _line(self, running: int) -> None:
        self._told = time.monotonic()
        text = f"{self._done} of {self._total} rows, {self._numbers(running)}"
        if self._rows > 0 and self._done < self._total:
            each = (self._told - self._begun) / self._rows
            text += f", {int((self._total - self._done) * each)} s left"
        self.tell(text)
