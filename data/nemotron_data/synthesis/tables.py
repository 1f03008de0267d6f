"""Rows of a recipe: of files, of steps, and combined. Each can be read several times."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.rows.parser import SHAREGPT_ROLES, decode
from nemotron_data.rows.row import BadRow
from nemotron_data.rows.source import Source

Row = dict[str, Any]
"""The columns of a row by their names."""


class Rows(Protocol):
    """Rows that can be read several times, always in the same order."""

    def __iter__(self) -> Iterator[Row]: ...


class Table:
    """A file of rows that a step has written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Row]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)

    def write(self, rows: Iterable[Row]) -> None:
        """Write the rows in one step. Raises `NemotronError` if the file cannot be written."""
        write_atomically(self.path, (to_line(row) for row in rows))


class FileRows:
    """The rows of a file in any format of `nemotron batch`; a text becomes the column `text`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Row]:
        with contextlib.closing(Source(str(self.path))) as source:
            for file, number, record in source.records():
                try:
                    yield _columns(record)
                except ValueError as error:
                    raise NemotronError(str(error), where=f"{file.name}:{number}") from error


class Combined:
    """The rows of several sources: one after the other (`chain`), `cross` or `zip`."""

    def __init__(self, sources: Sequence[Rows], how: str, where: str) -> None:
        self._sources, self._how, self._where = sources, how, where

    def __iter__(self) -> Iterator[Row]:
        if self._how == "chain":
            yield from itertools.chain.from_iterable(self._sources)
        elif self._how == "cross":
            first, *others = self._sources
            held = [list(source) for source in others]
            for row in first:
                for rows in itertools.product(*held):
                    yield self._merge([row, *rows])
        else:
            for number, rows in enumerate(itertools.zip_longest(*self._sources), 1):
                if None in rows:
                    raise NemotronError(
                        f"one of the sources ends before row {number}",
                        where=self._where,
                        remedy="zip sources of the same length, or cross them",
                    )
                yield self._merge(rows)

    def _merge(self, rows: Sequence[Row]) -> Row:
        merged: Row = {}
        for row in rows:
            for name, value in row.items():
                if merged.setdefault(name, value) != value:
                    raise NemotronError(
                        f"two sources have a column {name!r}",
                        where=self._where,
                        remedy="rename it in one of them",
                    )
        return merged


class Limited:
    """The first rows of a source."""

    def __init__(self, rows: Rows, limit: int) -> None:
        self._rows, self._limit = rows, limit

    def __iter__(self) -> Iterator[Row]:
        return itertools.islice(iter(self._rows), self._limit)


def to_line(content: object) -> str:
    """Return content as a line of JSON in UTF-8."""
    line = json.dumps(content, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        line = json.dumps(content, default=str)
    return line + "\n"


def _columns(record: object) -> Row:
    """Return the columns of a record. Raises `ValueError` if it has none."""
    if isinstance(record, BadRow):
        raise ValueError(record.reason)
    content = decode(record) if isinstance(record, bytes) else record
    if isinstance(content, str):
        return {"text": content}
    if not isinstance(content, dict):
        raise ValueError("the record is neither an object nor a text")
    turns = content.get("conversations")
    if isinstance(turns, list) and "messages" not in content:
        columns = {name: value for name, value in content.items() if name != "conversations"}
        return columns | {"messages": _messages(turns)}
    return content


def _messages(turns: list[Any]) -> list[dict[str, str]]:
    """Return the messages of ShareGPT's turns."""
    try:
        return [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
    except (LookupError, TypeError) as error:
        raise ValueError("a turn of conversations has no from and value") from error
