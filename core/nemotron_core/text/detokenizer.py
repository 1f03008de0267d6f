"""Streaming conversion of tokens to text, which never retracts a character."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

ASCII_END = 0x80
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TokenTexts(Protocol):
    """The part of a tokenizer that the detokenizer needs."""

    def token_text(self, id_: int) -> str | int:
        """Return the token's characters, or an int if the token is a single byte."""

    def is_control(self, id_: int) -> bool:
        """Return whether the token is not part of the text."""


class StreamingDetokenizer:
    r"""Turns tokens into text in linear time; returned pieces are final.

    After any number of tokens, the pieces so far, joined, are exactly the text of the tokens so
    far:

    >>> class Vocabulary:  # three bytes of "日", a word, the end of the turn
    ...     texts = (0xE6, 0x97, 0xA5, " word", "<extra_id_1>")
    ...     def token_text(self, id_): return self.texts[id_]
    ...     def is_control(self, id_): return id_ == 4
    >>> detokenizer = StreamingDetokenizer(Vocabulary())
    >>> [detokenizer.push([id_]) for id_ in (0, 1, 2, 3, 0, 1, 3, 4)]
    ['', '', '日', ' word', '', '', '�� word', '']

    The text of tokens is the result of SentencePiece's `decode` for a continuation of a prompt,
    where a leading space is a space. Each byte that cannot be part of a character is U+FFFD. Bytes
    that may still become a character are held back: an answer that is cut off inside a character
    ends before it. Control tokens have no text unless `show_control`.
    """

    def __init__(self, tokenizer: TokenTexts, *, show_control: bool = False) -> None:
        self._tokenizer = tokenizer
        self._show_control = show_control
        self._bytes = b""  # the start of an incomplete character, at most three bytes

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that is final with these tokens."""
        pieces = []
        for id_ in ids:
            text = self._tokenizer.token_text(id_)
            if isinstance(text, int):
                pieces.append(self._push_byte(text))
                continue
            if self._bytes:
                pieces.append(REPLACEMENT * len(self._bytes))
                self._bytes = b""
            if self._show_control or not self._tokenizer.is_control(id_):
                pieces.append(text)
        return "".join(pieces)

    def _push_byte(self, byte: int) -> str:
        if byte < ASCII_END and not self._bytes:
            return chr(byte)
        self._bytes += bytes((byte,))
        text = ""
        while self._bytes:
            try:
                text += self._bytes.decode()
            except UnicodeDecodeError as error:
                # Any other error than an incomplete character means that the first byte is invalid;
                # decoding resumes at the byte after it.
                if error.reason == "unexpected end of data":
                    break
                text += REPLACEMENT
                self._bytes = self._bytes[1:]
            else:
                self._bytes = b""
        return text
