"""What OpenAI's API answers, as it looks on the wire."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from nemotron_core.generation import Piece
from nemotron_core.openai.token_texts import chat_log_probs, completion_log_probs
from nemotron_core.text import Tokenizer


class Answer(ABC):
    """How one kind of completion looks on the wire."""

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(self, model: str, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": self.chunk_kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, pieces: dict[int, Piece]) -> dict[str, Any]:
        """All of it in one."""
        choices = [self.choice(index, pieces[index]) for index in sorted(pieces)]
        return self._head | {"object": self.kind, "choices": choices}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An event of a stream."""
        return self._head | {"choices": choices}

    def quick(self, usage: bool) -> tuple[str, str]:
        """What stands before and after the text of a chunk that has nothing else."""
        mark = "\0"
        text = json.dumps(self.chunk([self.piece(0, mark, None, None)]) | no_usage(usage))
        before, _, after = text.partition(json.dumps(mark))
        return before, after

    @abstractmethod
    def first(self, index: int) -> dict[str, Any] | None:
        """The choice that opens a stream, if there is one."""

    @abstractmethod
    def piece(
        self, index: int, text: str, log_probs: object, finish_reason: str | None
    ) -> dict[str, Any]:
        """A choice of a stream's chunk."""

    @abstractmethod
    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """A choice of the whole answer."""

    @abstractmethod
    def log_probs(self, index: int, piece: Piece) -> object:
        """Of a piece's tokens, or None where they were not asked for."""


class ChatAnswer(Answer):
    """To `/v1/chat/completions`."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def first(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(
        self, index: int, text: str, log_probs: object, finish_reason: str | None
    ) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {
            "index": index,
            "delta": delta,
            "logprobs": log_probs,
            "finish_reason": finish_reason,
        }

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": piece.text, "refusal": None},
            "logprobs": self.log_probs(index, piece),
            "finish_reason": piece.finish_reason,
        }

    def log_probs(self, index: int, piece: Piece) -> object:
        return chat_log_probs(self._tokenizer, piece) if self._tokenizer else None


class CompletionAnswer(Answer):
    """To `/v1/completions`; `echoes` are the prompts that stand before the answers."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, tokenizer: Tokenizer | None, echoes: Sequence[str]) -> None:
        super().__init__(model, tokenizer)
        self._echoes = echoes
        self._offsets: dict[int, int] = {}

    def first(self, index: int) -> dict[str, Any] | None:
        return self.piece(index, self._echoes[index], None, None) if self._echoes[index] else None

    def piece(
        self, index: int, text: str, log_probs: object, finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": log_probs,
            "finish_reason": finish_reason,
        }

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        text = self._echoes[index] + piece.text
        return self.piece(index, text, self.log_probs(index, piece), piece.finish_reason)

    def log_probs(self, index: int, piece: Piece) -> object:
        if self._tokenizer is None:
            return None
        found, self._offsets[index] = completion_log_probs(
            self._tokenizer, piece, self._offsets.get(index, 0)
        )
        return found


def no_usage(wanted: bool) -> dict[str, None]:
    """Asked for, it is a key of every chunk, and null in all but the last."""
    return {"usage": None} if wanted else {}


class Usage:
    """Tokens, counted by the engine: of each prompt once, of each answer as far as it came."""

    def __init__(self) -> None:
        self._prompts: dict[int, int] = {}
        self._answers: dict[int, int] = {}

    def add(self, index: int, piece: Piece) -> None:
        """A piece of the answer `index`."""
        self._prompts[index - piece.sequence_index] = piece.num_input_tokens
        self._answers[index] = piece.num_output_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(self._prompts.values())

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(self._answers.values())

    def as_dict(self) -> dict[str, int]:
        """Return the object `usage` of OpenAI's API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
