"""What the steps of a run share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_data.synthesis.asker import Asker, Reply, Stage
from nemotron_data.synthesis.prompts import Messages
from nemotron_data.synthesis.tables import Row, Rows, Table

FAILED = "failed"
"""Reason against a row whose question got no answer."""


@dataclass
class Context:
    """The folders of a run, its models, and what happened to the rows of each step."""

    asker: Asker
    steps: Path
    """Folder with the rows of each step."""
    recipe: Path
    """Folder that paths in the recipe are relative to."""
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    """Number of rows that each step left out, by reason."""

    def leave_out(self, step: str, reason: str) -> None:
        """Count a row that a step leaves out."""
        self.left_out.setdefault(step, Counter())[reason] += 1

    def table(self, name: str, rows: Iterable[Row]) -> Table:
        """Write the rows of a step, or of a part of it, to a file of its own."""
        table = Table(self.steps / f"{name}.jsonl")
        table.write(rows)
        return table

    def replies(
        self, step: str, stage: Stage, rows: Rows, messages: Callable[[Row], Messages]
    ) -> Iterator[tuple[Row, Reply]]:
        """Ask one question about each row, and yield each row with its reply.

        The row's `provenance` names the reply. A row whose question failed is left out.
        """
        replies = self.asker.ask(stage, map(messages, rows))
        for row, reply in zip(rows, replies, strict=True):
            if reply is None:
                self.leave_out(step, FAILED)
            else:
                yield row | {"provenance": provenance(row, stage.name, reply)}, reply


def provenance(row: Row, stage: str, reply: Reply) -> list[dict[str, str]]:
    """Return where a row comes from: each model's answer that it is made of."""
    entry = {"stage": stage, "model": reply.model, "request": reply.request}
    return [*(row.get("provenance") or ()), entry]
