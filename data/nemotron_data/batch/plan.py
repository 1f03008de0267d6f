"""The plan of a run: which rows of the input have their result already, and which are left."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nemotron_data.batch.results import KEY, REPORT_LINES, Keys, ignore
from nemotron_data.rows.formats import Record
from nemotron_data.rows.parser import RowParser
from nemotron_data.rows.row import BadRow, Row, repeated_key
from nemotron_data.rows.shard import Shard
from nemotron_data.rows.source import File, Source

BAD, OWN_ID, NO_ID, ELSEWHERE = 0, 1, 2, 3
"""Kinds of records: bad rows, rows with and without a custom_id of their own, and what belongs to
another shard."""
NO_KEY = bytes(KEY.itemsize)


@dataclass(frozen=True)
class Counts:
    """Numbers of rows, and of results in the output before the run."""

    rows: int
    bad: int
    kept: int
    new: int
    changed: int
    """Rows whose custom_id has a result, but for another request."""
    removed: int
    """Results that belong to no row of the input."""


def are_in(keys: Keys, others: Keys) -> npt.NDArray[np.bool_]:
    """Return for each key whether it is in `others`, with less memory than `np.isin` takes."""
    if not len(others):
        return np.zeros(len(keys), bool)
    ordered = np.sort(others)
    index = np.searchsorted(ordered, keys)
    index[index == len(ordered)] = 0
    found: npt.NDArray[np.bool_] = ordered[index] == keys
    return found


class Plan:
    """The rows of an input beside the results of an output.

    The input is read once for the plan and once for its rows. Memory is about 40 bytes per row.
    `found` are the keys in the output, and `custom_ids` returns the custom_ids of some of them.
    `report` is called with the number of rows read so far. With a `shard` the plan is about its
    rows only.
    """

    def __init__(
        self,
        source: Source,
        parser: RowParser,
        found: Keys,
        custom_ids: Callable[[Keys], list[str]],
        report: Callable[[int], None] = ignore,
        shard: Shard | None = None,
    ) -> None:
        self._source, self._parser, self._shard = source, parser, shard
        self._repeats: dict[int, int] = {}
        """Count of each equal row without a custom_id, from the second on, by its index."""
        self._duplicates: dict[int, int] = {}
        """Index of the first row with the same custom_id, by the index of each other one."""
        self._read(report)
        self._find_repeats()
        is_good = (self._kinds == OWN_ID) | (self._kinds == NO_ID)
        is_kept = is_good & are_in(self._keys, found)
        self.stale = found[~are_in(found, self._keys[is_good])]
        """Keys of results that belong to no row of the input."""
        names = [hash(custom_id) for custom_id in custom_ids(self.stale)] if len(self.stale) else []
        changed = int(np.isin(np.array(names, np.int64), self._names[is_good]).sum())
        good, kept, bad = int(is_good.sum()), int(is_kept.sum()), int((self._kinds == BAD).sum())
        self.counts = Counts(
            rows=good + bad,
            bad=bad,
            kept=kept,
            new=good - kept - changed,
            changed=changed,
            removed=len(self.stale) - changed,
        )
        self._is_left = (~is_kept & (self._kinds != ELSEWHERE)).tobytes()

    @property
    def keys(self) -> bytes:
        """The keys of all rows in their order, which identify the input."""
        keys: Keys = self._keys[self._kinds != ELSEWHERE]
        return keys.tobytes()

    def rows(self) -> Iterator[Row | BadRow]:
        """Yield every row that is left, in order. Bad rows are always left."""
        for index, (is_left, entry) in enumerate(
            zip(self._is_left, self._source.records(), strict=False)
        ):
            if is_left:
                yield self._row(index, *entry)

    def positions(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Return the index of the row of each key, which must be one of the input's."""
        order = np.argsort(self._keys, kind="stable")
        found: npt.NDArray[np.int64] = order[np.searchsorted(self._keys, keys, sorter=order)]
        return found

    def _read(self, report: Callable[[int], None]) -> None:
        keys, names = bytearray(), array("q")
        numbers, kinds = array("q"), bytearray()
        parse = self._parser.parse
        for count, (_file, number, record) in enumerate(self._source.records(), 1):
            row = parse(number, record)
            numbers.append(number)
            if self._shard is not None and not self._shard.has(row):
                keys += NO_KEY
                names.append(0)
                kinds.append(ELSEWHERE)
            elif isinstance(row, Row):
                keys += row.key
                names.append(hash(row.custom_id))
                kinds.append(OWN_ID if row.has_own_id else NO_ID)
            else:
                keys += NO_KEY
                names.append(0)
                kinds.append(BAD)
            if count % REPORT_LINES == 0:
                report(count)
        self._keys = np.frombuffer(keys, KEY)
        self._names = np.frombuffer(names, np.int64)
        """Hashes of the custom_ids."""
        self._numbers = np.frombuffer(numbers, np.int64)
        self._kinds = np.frombuffer(kinds, np.uint8)

    def _find_repeats(self) -> None:
        """Tell rows with the same name apart: give each a number, or mark it as a bad row."""
        order = np.argsort(self._names, kind="stable")
        order = order[np.isin(self._kinds[order], (OWN_ID, NO_ID))]
        is_first = np.ones(len(order), bool)
        is_first[1:] = self._names[order[1:]] != self._names[order[:-1]]
        firsts = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
        counts: dict[int, int] = {}
        for index, first in zip(order[~is_first].tolist(), firsts[~is_first].tolist(), strict=True):
            if self._kinds[index] == NO_ID:
                count = counts[first] = counts.get(first, 1) + 1
                self._repeats[index] = count
                key = repeated_key(self._keys[first : first + 1].tobytes(), count)
                self._keys[index : index + 1] = np.frombuffer(key, KEY)
            else:
                self._duplicates[index] = first
                self._kinds[index] = BAD

    def _row(self, index: int, file: File, number: int, record: Record) -> Row | BadRow:
        row = self._parser.parse(number, record)
        name = file.name if len(self._source.files) > 1 else None
        if index in self._duplicates and isinstance(row, Row):
            first = self._numbers[self._duplicates[index]]
            row = BadRow(
                number,
                row.custom_id,
                f"custom_id {row.custom_id!r} is in lines {first} and {number}",
                "give each row an id of its own",
            )
        if isinstance(row, BadRow):
            return replace(row, file=name)
        row.file = name
        if index in self._repeats:
            row.rename(self._repeats[index])
        return row
