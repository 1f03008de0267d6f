"""Tokens to text while they come, without ever taking a character back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TokenTexts(Protocol):
    """What the detokenizer needs of a tokenizer."""

    def token_text(self, id_: int) -> str | int:
        """The token's characters, or its one byte."""

    def is_control(self, id_: int) -> bool:
        """Whether the token is no part of the text."""


class StreamingDetokenizer:
    r"""Turns tokens into text in linear time; pieces once given out are final.

    After any number of tokens, the pieces given out so far are together exactly the text of the
    tokens so far:

    >>> class Vocabulary:  # three bytes of "日", a word, the end of the turn
    ...     texts = (0xE6, 0x97, 0xA5, " word", "<extra_id_1>")
    ...     def token_text(self, id_): return self.texts[id_]
    ...     def is_control(self, id_): return id_ == 4
    >>> detokenizer = StreamingDetokenizer(Vocabulary())
    >>> [detokenizer.push([id_]) for id_ in (0, 1, 2, 3, 0, 1, 3, 4)]
    ['', '', '日', ' word', '', '', '�� word', '']

    The text of tokens is what SentencePiece's `decode` makes of them as the continuation of a
    prompt, where a leading space is a space. Bytes that can never become a character are U+FFFD,
    one for each byte. Bytes that still can are no text yet: an answer cut off inside a character
    ends before it. Control tokens are not shown unless `show_control`.
    """

    def __init__(self, tokenizer: TokenTexts, *, show_control: bool = False) -> None:
        self._tokenizer = tokenizer
        self._show_control = show_control
        self._bytes = b""  # the beginning of one character, at most three bytes

    def push(self, ids: Iterable[int]) -> str:
        """The text that became certain with these tokens."""
        return "".join(self._push_one(int(id_)) for id_ in ids)

    def _push_one(self, id_: int) -> str:
        text = self._tokenizer.token_text(id_)
        if isinstance(text, int):
            return self._push_byte(text)
        if not self._show_control and self._tokenizer.is_control(id_):
            text = ""
        broken = REPLACEMENT * len(self._bytes)
        self._bytes = b""
        return broken + text

    def _push_byte(self, byte: int) -> str:
        self._bytes += bytes((byte,))
        text = ""
        while self._bytes:
            try:
                text += self._bytes.decode()
            except UnicodeDecodeError as error:
                # At the end of the data: so far a valid beginning. Elsewhere: its first byte is
                # none, and what follows it gets a chance of its own.
                if error.end == len(self._bytes) and error.reason == "unexpected end of data":
                    break
                text += REPLACEMENT
                self._bytes = self._bytes[1:]
            else:
                self._bytes = b""
        return text
