"""What makes a request's prompts, whatever they are for, and its limit for texts."""

from __future__ import annotations

from abc import ABC, abstractmethod

from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from nemotron_engine.protocol import Hello
from nemotron_engine.triton.prompts import Prompts
from nemotron_engine.triton.tensors import Inputs, Options

SHORT_CHARACTERS = 1 << 14
"""Texts up to this length are tokenized in a few milliseconds."""


class Builder(ABC):
    """Makes the sequences of a request for one model."""

    text_inputs: tuple[str, ...]
    """Inputs whose texts are tokenized."""
    remedy: str
    """What to do if they are too long."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        pieces = (tokenizer.piece(id_) for id_ in range(tokenizer.vocab_size))
        self._longest_piece = max(map(len, pieces))

    def is_long(self, inputs: Inputs) -> bool:
        """Return whether tokenizing may take longer than a few milliseconds."""
        return self._characters(inputs) > SHORT_CHARACTERS

    def build(self, inputs: Inputs, options: Options, request_id: str, hello: Hello) -> Prompts:
        """Return the sequences. Raises `NemotronError` if the request is invalid.

        Texts that are too long for any tokenizer are refused before they are tokenized.
        """
        limit = len(inputs) * hello.max_seq_len * self._longest_piece
        if (characters := self._characters(inputs)) > limit:
            raise NemotronError(
                f"{characters} characters are more than {hello.max_seq_len} tokens can hold",
                remedy=self.remedy,
            )
        return self.prompts(inputs, options, request_id, hello)

    @abstractmethod
    def prompts(self, inputs: Inputs, options: Options, request_id: str, hello: Hello) -> Prompts:
        """See `build`, which has checked the texts' length."""

    def _characters(self, inputs: Inputs) -> int:
        return sum(
            len(text)
            for row in range(len(inputs))
            for name in self.text_inputs
            for text in inputs.values(row, name) or ()
        )
