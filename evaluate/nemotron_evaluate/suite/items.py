"""What each item of a benchmark scored, in one form for all harnesses.

A file has one line for each item. An item is what is drawn independently of the others: a
question, a prompt with all its instructions, a conversation with all its turns. So it may have
several values for one score.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_evaluate.suite.benchmark import Strict


class Item(Strict):
    """One item of a benchmark and what it scored."""

    name: str
    """Task and number, unique in the benchmark."""
    content: str
    """Hash of the item's content, by which two runs know that they asked the same."""
    values: dict[str, tuple[float, ...]]
    """Values for each of the benchmark's scores, as the harness counts: mostly 0 or 1. There is
    none where a judge's rating could not be read."""


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write the items in one step. Raises `NemotronError` if the file cannot be written."""
    write_atomically(path, (item.model_dump_json() + "\n" for item in items))


def read_items(path: Path) -> list[Item]:
    """Return the items of a file. Raises `NemotronError` if it cannot be read."""
    try:
        with path.open(encoding="utf-8") as lines:
            return [Item.model_validate_json(line) for line in lines]
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise NemotronError(
            f"no readable items: {error}", where=path, remedy="repeat the command that made it"
        ) from error
