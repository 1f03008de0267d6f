"""Brute-force definitions of the text of an answer, which know nothing of streams."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from hypothesis import strategies as st

Item = TypeVar("Item", str, list[int])

BROKEN = "\N{REPLACEMENT CHARACTER}"
# The last byte of a character covers 64 code points.
INCOMPLETE = {
    chr(code_point).encode()[:length]
    for code_point in range(0x80, 0x110000, 64)
    if not 0xD800 <= code_point < 0xE000
    for length in range(1, len(chr(code_point).encode()))
}
"""Every proper beginning of the UTF-8 bytes of a character."""


class Vocabulary:
    """Ids 0 to 255 are bytes; the others are words, two of them control tokens."""

    words = (" word", "a", "b", "c", "\n", "ab\n", "日", "", "<extra_id_0>", "<extra_id_1>")
    CONTROL = (len(words) + 256 - 2, len(words) + 256 - 1)
    END = CONTROL[1]

    def token_text(self, id_: int) -> str | int:
        return id_ if id_ < 256 else self.words[id_ - 256]

    def is_control(self, id_: int) -> bool:
        return id_ in self.CONTROL


VOCABULARY = Vocabulary()
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
EDGES = [0x7F, 0x80, 0xBF, 0xC0, 0xC1, 0xC2, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF]
"""Bytes where the rules of UTF-8 change."""
BYTE_RUNS = st.one_of(
    CHARACTERS.map(str.encode),
    st.tuples(CHARACTERS, st.integers(0, 3)).map(lambda drawn: drawn[0].encode()[: drawn[1]]),
    st.lists(st.sampled_from(EDGES), max_size=4).map(bytes),
)
"""Bytes of whole characters, of cut characters, and of none."""
WORDS = st.integers(256, 255 + len(VOCABULARY.words)).map(lambda id_: [id_])
TOKENS = st.lists(BYTE_RUNS.map(list) | WORDS, max_size=12).map(
    lambda runs: [id_ for run in runs for id_ in run]
)


def is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def decode_bytes(data: bytes, *, more_may_come: bool) -> str:
    text = ""
    while data and not (more_may_come and data in INCOMPLETE):
        size = next((size for size in range(1, 5) if is_character(data[:size])), 0)
        text += data[:size].decode() if size else BROKEN
        data = data[size or 1 :]
    return text


def decode(ids: Sequence[int], *, show_control: bool = False) -> str:
    """The text of all of these tokens, after which more may come."""
    text, run = "", b""
    for id_ in ids:
        if id_ < 256:
            run += bytes([id_])
        else:
            text += decode_bytes(run, more_may_come=False)
            hidden = VOCABULARY.is_control(id_) and not show_control
            text += "" if hidden else VOCABULARY.words[id_ - 256]
            run = b""
    return text + decode_bytes(run, more_may_come=True)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the first stop string, and that stop string.

    The first is the one whose last character comes first, and of those the longest.
    """
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, None


def without_undecided(text: str, stops: Sequence[str]) -> str:
    """A text without stop strings, up to where one may have begun."""
    starts = [
        start for start in range(len(text)) if any(stop.startswith(text[start:]) for stop in stops)
    ]
    return text[: min(starts, default=len(text))]


def split(whole: Item, cuts: Sequence[int]) -> list[Item]:
    """A sequence in pieces, some of which may be empty."""
    edges = sorted([0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)])
    return [whole[start:end] for start, end in pairwise(edges)]


CUTS = st.lists(st.integers(0, 100), max_size=12)
