"""Builders of OpenAI's answers: whole responses, and the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemotron_core.generation import Piece
from nemotron_core.openai.token_texts import (
    TextOffsets,
    TokenScore,
    answer_scores,
    chat_log_probs,
    completion_log_probs,
    prompt_log_probs,
    prompt_scores,
)
from nemotron_core.openai.usage import Usage
from nemotron_core.text import Tokenizer

FINGERPRINT_CHARACTERS = 16


def engine_fingerprint(engine: str) -> str:
    """Return `system_fingerprint` for the hash of an engine.

    >>> engine_fingerprint("0123456789abcdef0123456789abcdef")
    'fp_0123456789abcdef'
    """
    return f"fp_{engine[:FINGERPRINT_CHARACTERS]}"


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What an answer has besides its texts."""

    request_id: str | None = None
    fingerprint: str | None = None
    """Names the engine: answers with the same one come from the same engine."""
    include_usage: bool = False
    """Whether a stream ends with a chunk that has the token counts."""
    continuous_usage: bool = False
    """Whether every chunk has the token counts so far."""
    tokenizer: Tokenizer | None = None
    """Tokenizer for the texts of tokens, if there are log-probabilities."""
    top: int | None = None
    """Number of alternatives at each token; `None` leaves the answer's log-probabilities out."""
    prompt_top: int | None = None
    """The same for `prompt_logprobs`."""
    prompts: Sequence[Sequence[int]] = ()
    """The prompts' tokens, if their log-probabilities are returned."""
    echoes: Sequence[str] = ()
    """The prompts' texts, which then begin the texts of a completion."""
    without_answer: bool = False
    """Whether the answer itself is left out, because only its prompt was asked for."""


class Answer(ABC):
    """Builder of one answer, either whole or as the chunks of a stream.

    An answer has one choice for each sequence that is generated; `index` numbers them over all
    prompts of the request, of which each has `num_answers`.

    >>> answer = ChatAnswer("nemotron", AnswerOptions(request_id="7"))
    >>> whole = answer.whole({0: Piece("Hi", num_output_tokens=1)})
    >>> whole["id"], whole["choices"][0]["message"]["content"], whole["usage"]["total_tokens"]
    ('chatcmpl-7', 'Hi', 1)
    """

    object_name: str
    chunk_object_name: str
    id_prefix: str

    def __init__(
        self, model: str, options: AnswerOptions = AnswerOptions(), *, num_answers: int = 1
    ) -> None:
        self.usage = Usage(
            {number * num_answers: len(ids) for number, ids in enumerate(options.prompts)}
        )
        self._options = options
        self._num_answers = num_answers
        self._head: dict[str, Any] = {
            "id": f"{self.id_prefix}-{options.request_id or uuid.uuid4().hex}",
            "object": self.chunk_object_name,
            "created": int(time.time()),
            "model": model,
        }
        if options.fingerprint:
            self._head["system_fingerprint"] = options.fingerprint

    def whole(self, pieces: Mapping[int, Piece]) -> dict[str, Any]:
        """Return the whole answer. Each choice is one piece, by its index."""
        if self._options.without_answer:
            pieces = {
                index: replace(piece, text="", num_output_tokens=0, finish_reason="length")
                for index, piece in pieces.items()
            }
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
        return [self._chunk([]) | usage] if self._options.include_usage else []

    def chunk_template(self) -> tuple[str, str] | None:
        """Return the JSON before and after the text of a chunk for choice 0 that has only text.

        Most chunks are of this form, and to fill it in is faster than to build a chunk. `None`
        means that chunks differ in more than their text.
        """
        if self._options.continuous_usage:
            return None
        mark = "\0"
        template = json.dumps(self._chunk([self._delta(0, mark, None, None)]))
        before, _, after = template.partition(json.dumps(mark))
        return before, after

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        # In OpenAI's API `usage` is null in all chunks but the last, if the client wants it.
        usage: dict[str, Any] = {"usage": None} if self._options.include_usage else {}
        if self._options.continuous_usage:
            usage = {"usage": self.usage.as_dict()}
        return self._head | {"choices": choices} | usage

    def _prompt_scores(self, index: int, piece: Piece, top: int | None) -> list[TokenScore]:
        ids = self._options.prompts[index // self._num_answers]
        return prompt_scores(ids, piece, top or 0)

    def _prompt_log_probs(self, index: int, piece: Piece) -> dict[str, object]:
        """Return the key with the prompt's log-probabilities, if they are asked for."""
        options = self._options
        if options.prompt_top is None or options.tokenizer is None:
            return {}
        scores = self._prompt_scores(index, piece, options.prompt_top)
        return {"prompt_logprobs": prompt_log_probs(options.tokenizer, scores)}

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
        """Return the log-probabilities of a piece's tokens, or `None` if nobody wants them."""


class ChatAnswer(Answer):
    """Builder of the answer to `/v1/chat/completions`."""

    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def whole(self, pieces: Mapping[int, Piece]) -> dict[str, Any]:
        """See `Answer`. All choices have the same prompt."""
        return super().whole(pieces) | self._prompt_log_probs(0, pieces[0])

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
        options = self._options
        if options.top is None or options.tokenizer is None:
            return None
        scores = [] if options.without_answer else answer_scores(piece)
        return chat_log_probs(options.tokenizer, scores)


class CompletionAnswer(Answer):
    """Builder of the answer to `/v1/completions`.

    With `echoes` each choice begins with its prompt. If it has log-probabilities too, so have the
    prompt's tokens.
    """

    object_name = chunk_object_name = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._offsets: dict[int, TextOffsets] = {}
        self._unsettled: dict[int, list[TokenScore]] = {}
        """Tokens of each choice whose place in the text is not known yet."""

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        log_probs = self._log_probs(index, piece)
        text = self._echo(index) + piece.text
        choice = self._delta(index, text, log_probs, piece.finish_reason)
        return choice | self._prompt_log_probs(index, piece)

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
        echoes = self._options.echoes
        return echoes[index // self._num_answers] if echoes else ""

    def _log_probs(self, index: int, piece: Piece) -> object:
        options = self._options
        tokenizer = options.tokenizer
        if options.top is None or tokenizer is None:
            return None
        scores: list[TokenScore] = []
        places: list[int] = []
        if index not in self._offsets and options.echoes:
            scores = self._prompt_scores(index, piece, options.top)
            offsets = TextOffsets(tokenizer, show_control=True)
            places = offsets.push(score.id_ for score in scores)
            places += offsets.finish()
        if not options.without_answer:
            offsets = self._offsets.setdefault(
                index, TextOffsets(tokenizer, len(self._echo(index)))
            )
            scores += self._unsettled.pop(index, []) + answer_scores(piece)
            places += offsets.push(piece.token_ids)
            if piece.finish_reason:
                places += offsets.finish()
            scores, self._unsettled[index] = scores[: len(places)], scores[len(places) :]
        return completion_log_probs(tokenizer, scores, places, has_top=bool(options.top))
