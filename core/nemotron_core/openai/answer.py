"""Builders of OpenAI's answers: whole responses, and the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_core.generation import Piece
from nemotron_core.openai.token_texts import chat_log_probs, completion_log_probs
from nemotron_core.text import Tokenizer


class Usage:
    """Token counts of one request, as the engine reports them.

    The tokens of each prompt count once, those of each answer as far as it has been generated.
    """

    def __init__(self) -> None:
        self._prompts: dict[int, int] = {}
        self._answers: dict[int, int] = {}

    def add(self, index: int, piece: Piece) -> None:
        """Take the counts from a piece of the answer `index`."""
        self._prompts[index - piece.sequence_index] = piece.num_input_tokens
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


class Answer(ABC):
    """Builder of one answer, either whole or as the chunks of a stream.

    An answer has one choice for each sequence that is generated; `index` numbers them over all
    prompts of the request. With a `tokenizer` the choices have log-probabilities. With
    `include_usage` a stream ends with a chunk that has the token counts.

    >>> answer = ChatAnswer("nemotron", request_id="7").whole({0: Piece("Hi", num_output_tokens=1)})
    >>> answer["id"], answer["choices"][0]["message"]["content"], answer["usage"]["total_tokens"]
    ('chatcmpl-7', 'Hi', 1)
    """

    object_name: str
    chunk_object_name: str
    id_prefix: str

    def __init__(
        self,
        model: str,
        *,
        request_id: str | None = None,
        tokenizer: Tokenizer | None = None,
        include_usage: bool = False,
    ) -> None:
        self.usage = Usage()
        self._tokenizer = tokenizer
        self._include_usage = include_usage
        self._head = {
            "id": f"{self.id_prefix}-{request_id or uuid.uuid4().hex}",
            "object": self.chunk_object_name,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, pieces: Mapping[int, Piece]) -> dict[str, Any]:
        """Return the whole answer. Each choice is one piece, by its index."""
        for index, piece in pieces.items():
            self.usage.add(index, piece)
        choices = [self._choice(index, pieces[index]) for index in sorted(pieces)]
        usage = self.usage.as_dict()
        return self._head | {"object": self.object_name, "choices": choices, "usage": usage}

    def opening(self, count: int) -> list[dict[str, Any]]:
        """Return the chunks that open a stream of `count` choices."""
        choices = map(self._first_delta, range(count))
        return [self._chunk([choice]) for choice in choices if choice is not None]

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunks for one piece: its text, then its finish reason, if it has them."""
        log_probs = self._log_probs(index, piece)
        chunks = []
        if piece.text or piece.log_probs:
            chunks.append(self._chunk([self._delta(index, piece.text, log_probs, None)]))
        if piece.finish_reason:
            chunks.append(self._chunk([self._delta(index, "", None, piece.finish_reason)]))
        return chunks

    def closing(self) -> list[dict[str, Any]]:
        """Return the chunks that close a stream: the token counts, if the client wants them."""
        usage = {"usage": self.usage.as_dict()}
        return [self._chunk([]) | usage] if self._include_usage else []

    def chunk_template(self) -> tuple[str, str]:
        """Return the JSON before and after the text of a chunk for choice 0 that has only text.

        Most chunks are of this form, and to fill it in is faster than to build a chunk.
        """
        mark = "\0"
        template = json.dumps(self._chunk([self._delta(0, mark, None, None)]))
        before, _, after = template.partition(json.dumps(mark))
        return before, after

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        # In OpenAI's API `usage` is null in all chunks but the last, if the client wants it.
        usage = {"usage": None} if self._include_usage else {}
        return self._head | {"choices": choices} | usage

    @abstractmethod
    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return a choice of a whole answer."""

    @abstractmethod
    def _first_delta(self, index: int) -> dict[str, Any] | None:
        """Return the choice of the chunk that opens a stream, or `None` if none is needed."""

    @abstractmethod
    def _delta(
        self, index: int, text: str, log_probs: object, finish_reason: str | None
    ) -> dict[str, Any]:
        """Return the choice of a chunk."""

    @abstractmethod
    def _log_probs(self, index: int, piece: Piece) -> object:
        """Return the log-probabilities of a piece's tokens, or `None` without a tokenizer."""


class ChatAnswer(Answer):
    """Builder of the answer to `/v1/chat/completions`."""

    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": piece.text, "refusal": None},
            "logprobs": self._log_probs(index, piece),
            "finish_reason": piece.finish_reason,
        }

    def _first_delta(self, index: int) -> dict[str, Any] | None:
        return self._delta(index, "", None, None) | {"delta": {"role": "assistant", "content": ""}}

    def _delta(
        self, index: int, text: str, log_probs: object, finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": {"content": text} if text else {},
            "logprobs": log_probs,
            "finish_reason": finish_reason,
        }

    def _log_probs(self, index: int, piece: Piece) -> object:
        return chat_log_probs(self._tokenizer, piece) if self._tokenizer else None


class CompletionAnswer(Answer):
    """Builder of the answer to `/v1/completions`.

    `echoes` are the prompts to put before the texts, one for each choice; without them there is
    no echo.
    """

    object_name = chunk_object_name = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, model: str, *, echoes: Sequence[str] = (), **options: Any) -> None:
        super().__init__(model, **options)
        self._echoes = echoes
        self._offsets: dict[int, int] = {}

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        text = self._echo(index) + piece.text
        return self._delta(index, text, self._log_probs(index, piece), piece.finish_reason)

    def _first_delta(self, index: int) -> dict[str, Any] | None:
        echo = self._echo(index)
        return self._delta(index, echo, None, None) if echo else None

    def _delta(
        self, index: int, text: str, log_probs: object, finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": log_probs,
            "finish_reason": finish_reason,
        }

    def _echo(self, index: int) -> str:
        return self._echoes[index] if self._echoes else ""

    def _log_probs(self, index: int, piece: Piece) -> object:
        if self._tokenizer is None:
            return None
        log_probs, self._offsets[index] = completion_log_probs(
            self._tokenizer, piece, self._offsets.get(index, 0)
        )
        return log_probs
