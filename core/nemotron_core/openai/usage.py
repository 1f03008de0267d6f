"""The token counts of OpenAI's answers."""

from __future__ import annotations

from collections.abc import Mapping

from nemotron_core.generation import Piece


class Usage:
    """Token counts of one request, as the engine reports them.

    The tokens of each prompt count once, those of each answer as far as it has been generated.
    """

    def __init__(self, prompts: Mapping[int, int] | None = None) -> None:
        self._prompts = dict(prompts or {})
        """Number of tokens of each prompt, by the index of its first answer."""
        self._answers: dict[int, int] = {}

    def add(self, index: int, piece: Piece) -> None:
        """Take the counts from a piece of the answer `index`."""
        # The count of the prompt comes with the last piece.
        first = index - piece.sequence_index
        self._prompts[first] = piece.num_input_tokens or self._prompts.get(first, 0)
        self._answers[index] = piece.num_output_tokens

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of all prompts."""
        return sum(self._prompts.values())

    @property
    def completion_tokens(self) -> int:
        """Number of tokens of all answers so far."""
        return sum(self._answers.values())

    def as_dict(self) -> dict[str, int]:
        """Return the object `usage` of OpenAI's API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
