"""Stop strings, which are matched on the text and not on tokens."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_core.errors import NemotronError
from nemotron_core.text.prompt import check_text

MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024
"""Limit in characters. Both have limits because every piece is compared with every stop string."""


class StopStrings:
    r"""Cuts a stream of text at the first stop string, however the text is split into pieces.

    >>> stops = StopStrings(["END", "\\n\\n"])
    >>> [stops.push(piece) for piece in ("one E", "N two\\n", "thrEN", "D four")]
    ['one ', 'EN two', '\\nthr', '']
    >>> stops.matched
    'END'

    A possible beginning of a stop string is held back until it is decided. `finish` returns it if
    the text ends before that. The stop string whose last character comes first wins, and of those
    the longest: this is the only rule that gives the same text for every split.

    Raises `NemotronError` if a stop string could never match or there are too many.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        if len(strings) > MAX_STOP_STRINGS:
            raise NemotronError(
                f"{len(strings)} stop strings are too many",
                remedy=f"send at most {MAX_STOP_STRINGS}",
            )
        for number, string in enumerate(strings):
            where = f"stop string {number + 1}"
            check_text(string, where=where)
            if not 0 < len(string) <= MAX_STOP_LENGTH:
                raise NemotronError(
                    f"a stop string must have 1 to {MAX_STOP_LENGTH} characters", where=where
                )
        self._strings = tuple(strings)
        self._longest = max(map(len, strings), default=0)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text, or `None`."""

    def push(self, text: str) -> str:
        """Return the part of the text that is now certain to come before any stop string."""
        if self.matched is not None:
            return ""
        text = self._held + text
        matches = [(at + len(s), at, s) for s in self._strings if (at := text.find(s)) >= 0]
        if matches:
            _, at, self.matched = min(matches)
            self._held = ""
            return text[:at]
        keep = len(text) - self._undecided(text)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """Return the text that was held back, once no more text comes."""
        text, self._held = self._held, ""
        return text

    def _undecided(self, text: str) -> int:
        """Return the length of the longest suffix of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._strings):
                return length
        return 0
