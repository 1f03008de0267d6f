"""Steps that keep some rows: by a condition, the best of each prompt, and one of equal texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from nemotron_data.extra import require
from nemotron_data.synthesis.context import Context
from nemotron_data.synthesis.groups import groups
from nemotron_data.synthesis.kinds import Decontaminate, Dedup, Filter
from nemotron_data.synthesis.prompts import Text, Value
from nemotron_data.synthesis.tables import FileRows, Row, Rows

PERMUTATIONS = 128
"""Number of hash functions of a MinHash: the similarity is estimated within about 0.09."""
SHINGLE_WORDS = 3
"""Number of consecutive words that are compared as one."""
WORDS = re.compile(r"\w+")


def keep(step: Filter, name: str, rows: Rows, context: Context) -> Iterator[Row]:
    """Keep the rows for which the condition is true, and the best of each prompt."""
    conditions, where = step.filter, f"steps.{name}.filter"
    if conditions.where is not None:
        condition = Value(conditions.where, f"{where}.where")
        passed: Rows = context.table(f"{name}.where", _true(condition, name, rows, context))
    else:
        passed = rows
    if conditions.best is None:
        yield from passed
        return
    ranked = groups(passed, conditions.per, Value(conditions.by, f"{where}.by"), where)
    best = {member.index for members in ranked for member in members[: conditions.best]}
    for index, row in enumerate(passed):
        if index in best:
            yield row
        else:
            context.leave_out(name, "not the best")


def _true(condition: Value, name: str, rows: Rows, context: Context) -> Iterator[Row]:
    for row in rows:
        if condition.of(row):
            yield row
        else:
            context.leave_out(name, "condition")


def deduplicate(step: Dedup, name: str, rows: Rows, context: Context) -> Iterator[Row]:
    """Leave out rows whose text equals an earlier one, or is similar to it.

    Case and white space do not count.
    """
    text = Text(step.dedup.text, f"steps.{name}.dedup.text")
    seen: set[bytes] = set()
    similar = None if step.dedup.similarity == 1 else SimilarTexts(step.dedup.similarity)
    for row in rows:
        plain = " ".join(text.of(row).casefold().split())
        digest = blake2b(plain.encode(errors="replace"), digest_size=16).digest()
        if digest in seen:
            context.leave_out(name, "duplicate")
        elif similar is not None and similar.has(words_of(plain)):
            context.leave_out(name, "near duplicate")
        else:
            seen.add(digest)
            yield row


class SimilarTexts:
    """Texts that were seen, compared by MinHash. Texts of fewer words than a shingle never are."""

    def __init__(self, similarity: float) -> None:
        self._library: Any = require("datasketch")
        self._index = self._library.MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
        self._similarity = similarity
        self._hashes: list[Any] = []

    def has(self, words: list[str]) -> bool:
        """Return whether a similar text was seen; if none was, this one is seen from now on."""
        shingles = [
            " ".join(words[start : start + SHINGLE_WORDS]).encode(errors="replace")
            for start in range(len(words) - SHINGLE_WORDS + 1)
        ]
        if not shingles:
            return False
        minhash = self._library.MinHash(num_perm=PERMUTATIONS, seed=1)
        minhash.update_batch(shingles)
        for index in self._index.query(minhash):
            if self._hashes[index].jaccard(minhash) >= self._similarity:
                return True
        self._index.insert(len(self._hashes), minhash)
        self._hashes.append(minhash)
        return False


def decontaminate(step: Decontaminate, name: str, rows: Rows, context: Context) -> Iterator[Row]:
    """Leave out rows that share some consecutive words with a text of the files `against`.

    A benchmark's text of fewer words must be the whole text of the row.
    """
    settings = step.decontaminate
    text = Text(settings.text, f"steps.{name}.decontaminate.text")
    forbidden: set[tuple[str, ...]] = set()
    for path in settings.against:
        for row in FileRows(context.recipe / path):
            for value in _texts(row):
                forbidden.update(_runs(words_of(value), settings.words))
    for row in rows:
        if forbidden.isdisjoint(_runs(words_of(text.of(row)), settings.words)):
            yield row
        else:
            context.leave_out(name, "in a benchmark")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case.

    >>> words_of("Why is the sky blue?")
    ['why', 'is', 'the', 'sky', 'blue']
    """
    return WORDS.findall(text.casefold())


def _runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    """Yield each `length` consecutive words, or all words if there are fewer."""
    for start in range(max(1, len(words) - length + 1)):
        if run := tuple(words[start : start + length]):
            yield run


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a row of any form."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
