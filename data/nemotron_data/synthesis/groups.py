"""Rows of one prompt, ranked by a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from nemotron_data.rows.row import canonical
from nemotron_data.synthesis.prompts import Text, Value, conversation
from nemotron_data.synthesis.tables import Row, Rows

GROUP_BYTES = 16


@dataclass(frozen=True)
class Member:
    """A row of a group: its position among all rows, and its value."""

    index: int
    value: float


def group_of(per: str | None, where: str) -> Callable[[Row], bytes]:
    """Return a function that names the group of a row by 16 bytes.

    `per` is the template of what the rows of a group have in common; without one it is the
    conversation before its last answer.
    """
    text = None if per is None else Text(per, f"{where}.per")

    def group(row: Row) -> bytes:
        common = conversation(row, where)[:-1] if text is None else text.of(row)
        return blake2b(canonical(common), digest_size=GROUP_BYTES).digest()

    return group


def groups(rows: Rows, per: str | None, value: Value | None, where: str) -> list[list[Member]]:
    """Return the rows of each prompt, the best first, and equal ones in their order.

    Without a value all are equal. Groups are in the order of their first rows. Memory is about 200
    bytes per row.
    """
    found: dict[bytes, list[Member]] = {}
    group = group_of(per, where)
    for index, row in enumerate(rows):
        number = 0.0 if value is None else value.number(row)
        found.setdefault(group(row), []).append(Member(index, number))
    return [sorted(members, key=lambda member: -member.value) for members in found.values()]


def rows_at(rows: Rows, indices: set[int]) -> Iterator[tuple[int, Row]]:
    """Yield the rows at these positions, with their positions."""
    for index, row in enumerate(rows):
        if index in indices:
            yield index, row
