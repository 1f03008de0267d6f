"""A part of an input that is a batch of its own, on a machine of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_data.rows.row import BadRow, Row

SHARD = re.compile(r"(\d+)/(\d+)")
NAME_BYTES = 8
SUFFIX = re.compile(r"((?:\.(?:jsonl|parquet))?(?:\.(?:gz|zst))?)(/?)$")
"""The end of an output's name that stays the end: its format, its compression, or the slash."""


@dataclass(frozen=True)
class Shard:
    """Shard `index`, from 0, of `count`.

    A row belongs to a shard by its custom_id, so rows that are added to an input move no other one.
    """

    index: int
    count: int

    def has(self, row: Row | BadRow) -> bool:
        """Return whether a row belongs to this shard; a bad row does by its line."""
        if isinstance(row, BadRow):
            return row.number % self.count == self.index
        return self.has_name(row.custom_id.encode())

    def has_name(self, name: bytes) -> bool:
        """Return whether what has this name belongs to this shard."""
        digest = blake2b(name, digest_size=NAME_BYTES).digest()
        return int.from_bytes(digest, "big") % self.count == self.index

    def output(self, name: str) -> str:
        """Return the name of this shard's output.

        >>> Shard(3, 16).output("out/answers.jsonl.gz")
        'out/answers-00003-of-00016.jsonl.gz'
        """
        if Path(name).is_dir():
            name = name.rstrip("/") + "/"
        return SUFFIX.sub(rf"-{self.index:05d}-of-{self.count:05d}\1\2", name, count=1)


def parse_shard(text: str) -> Shard:
    """Return the shard that `I/N` means. Raises `NemotronError` if it is none."""
    match = SHARD.fullmatch(text)
    if match is None or int(match[1]) >= int(match[2]):
        raise NemotronError(
            "not a shard", where=f"--shard {text}", remedy="give I/N with I from 0 to N-1"
        )
    return Shard(int(match[1]), int(match[2]))
