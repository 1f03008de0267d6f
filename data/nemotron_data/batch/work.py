"""The work of a run: its rows, how they are sent and judged, and where the results go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from nemotron_data.batch.accept import Acceptance
from nemotron_data.batch.request import Requests
from nemotron_data.batch.result_line import FailureLine
from nemotron_data.rows.row import BadRow, Row


class Results(Protocol):
    """A destination of result lines."""

    def append(self, line: bytes) -> None: ...

    def tick(self) -> None: ...


@dataclass
class Work:
    """The rows to send, how they are sent and judged, and the destinations of their results."""

    rows: Iterator[Row | BadRow]
    total: int
    """Number of rows of the input."""
    requests: Requests
    acceptance: Acceptance
    attempts: int
    results: Results
    failures: Results
    failure_line: FailureLine
    """Makes the line of a failed row."""


@dataclass
class Counts:
    """Numbers of rows of the whole output."""

    finished: int
    failed: int = 0


class Pending:
    """A row that has no result yet, and what happened to it."""

    __slots__ = ("answers", "attempts", "failed", "row", "unreachable")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.attempts = self.failed = self.unreachable = 0
        self.answers = 1
        """Number of the answer that is asked for; it is higher after answers not accepted."""
