"""Progress of a batch on standard error: rows, tokens per second, failures, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

LINE_SECONDS = 10.0
"""Seconds between two lines in a log, which cannot show a bar."""


class Progress:
    """The rows of a run, counted from another thread if need be; shows nothing."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.total: int | None = None
        """Number of rows, once it is known."""
        self.done = self.failed = self.tokens = 0
        """Numbers of rows that have a result or have failed, of those that have failed in this
        run, and of the tokens of this run's answers."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_error: object) -> None:
        """End."""

    def read(self, what: str, count: int) -> None:
        """Note that so many lines of something have been read."""

    def begin(self, total: int, finished: int) -> None:
        """Start the rows, of which `finished` have their results already."""
        self.total, self.done = total, finished

    def advance(self, *, tokens: int = 0, failed: int = 0) -> None:
        """Count one more row, which has an answer of `tokens` tokens or has failed."""
        self.done += 1
        self.tokens += tokens
        self.failed += failed

    def log(self, text: str) -> None:
        """Note a text."""

    def print_table(self, title: str, values: Mapping[str, str]) -> None:
        """Note a table of two columns."""

    def tick(self, running: int) -> None:
        """Note that `running` requests are at the server. To be called regularly."""


class Display(Progress):
    """A bar on a terminal, or a line every `LINE_SECONDS` in a log.

    At first it shows what is read; `begin` starts the rows.
    """

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self._before = 0
        """Number of rows that had their results before."""
        self._start = self._last_line = time.monotonic()
        self.console = Console(stderr=True)
        self._bar: Bar | None = None
        if self.console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task(title, total=None, status="")

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_error: object) -> None:
        if self._bar is not None:
            self.tick(0)
            self._bar.stop()
        elif error_type is None and self.total is not None:
            self._print_line(0)

    def read(self, what: str, count: int) -> None:
        """Show that so many lines of something have been read."""
        if self._bar is not None:
            self._bar.update(self._task, completed=count, status=f"read of {what}")
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self.log(f"{count:,} lines of {what} read")

    def begin(self, total: int, finished: int) -> None:
        """Start the rows, of which `finished` have their results already."""
        super().begin(total, finished)
        self._before = finished
        self._start = self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task, total=total, completed=finished, status="")

    def log(self, text: str) -> None:
        """Print a line that stays."""
        if self._bar is not None:
            self.console.print(text, markup=False, highlight=False)
        else:
            print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def print_table(self, title: str, values: Mapping[str, str]) -> None:
        """Print a table of two columns that stays, below the bar, which ends."""
        if self._bar is not None:
            self.tick(0)
            self._bar.stop()
        table = Table(title=title, show_header=False, title_justify="left")
        table.add_column()
        table.add_column(justify="right")
        for name, value in values.items():
            table.add_row(name, value)
        self.console.print(table, markup=False, highlight=False)

    def tick(self, running: int) -> None:
        """Update the bar, or print a line if one is due; `running` requests are at the server."""
        if self.total is None:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, status=self._status(running))
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._print_line(running)

    def _status(self, running: int) -> str:
        seconds = max(1e-9, time.monotonic() - self._start)
        return f"{self.tokens / seconds:,.0f} tokens/s, {running} running, {self.failed} failed"

    def _print_line(self, running: int) -> None:
        self._last_line = time.monotonic()
        text = f"{self.done} of {self.total} rows, {self._status(running)}"
        rows = self.done - self._before
        if rows > 0 and self.total is not None and self.done < self.total:
            seconds_per_row = (self._last_line - self._start) / rows
            text += f", {int((self.total - self.done) * seconds_per_row)} s left"
        self.log(text)
