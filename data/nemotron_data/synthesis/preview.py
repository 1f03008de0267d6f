"""The first rows of all steps side by side."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from rich.table import Table as RichTable

from nemotron_data.synthesis.fields import Inputs
from nemotron_data.synthesis.manifest import Manifest
from nemotron_data.synthesis.tables import Row, Table

CHARACTERS = 200
"""Longest text of a value that is shown."""
HIDDEN = (
    *("messages", "provenance", "finish_reason", "model", "scores", "turn_scores"),
    *("chosen_model", "rejected_model"),
)


def preview_table(folder: Path, manifest: Manifest, count: int) -> RichTable:
    """Return a table with the first `count` rows of each step: the columns that the step added."""
    table = RichTable(show_lines=True)
    columns: list[list[str]] = []
    known: dict[str, set[str]] = {}
    for name, step in manifest.recipe.steps.items():
        table.add_column(f"{name} ({manifest.steps[name].rows_out})", overflow="fold")
        before: set[str] = set().union(
            *(known.get(source, ()) for source in Inputs.of(step.rows).names)
        )
        rows = list(islice(Table(folder / "steps" / f"{name}.jsonl"), count))
        known[name] = set().union(*rows)
        columns.append([_cell(row, before) for row in rows])
    for index in range(count):
        cells = [column[index] if index < len(column) else "" for column in columns]
        if any(cells):
            table.add_row(*cells)
    return table


def _cell(row: Row, before: set[str]) -> str:
    shown = {name: value for name, value in row.items() if name not in HIDDEN}
    added = {name: value for name, value in shown.items() if name not in before}
    return "\n".join(f"{name}: {_short(value)}" for name, value in (added or shown).items())


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list) and value and isinstance(value[0], dict) and "content" in value[0]:
        value = " / ".join(str(turn["content"]) for turn in value)
    text = " ".join(str(value).split())
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"
