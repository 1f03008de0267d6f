"""The answers to one request, and the responses that the engine's chunks turn them into."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemotron_core.text import Tokenizer
from nemotron_engine.protocol import Chunk
from nemotron_engine.triton.answer import Answer, Part
from nemotron_engine.triton.prompts import AnswerSettings, RequestSettings
from nemotron_engine.triton.responses import last_response, middle_response, token_response
from nemotron_engine.triton.tensors import error_response


@dataclass
class Outcome:
    """What follows from chunks of the engine."""

    responses: list[Any] = field(default_factory=list)
    stopped: list[bytes] = field(default_factory=list)
    """Keys of sequences that have ended before the engine knew."""
    is_last: bool = False
    """Whether the last of the responses is the request's last one."""


class Answers:
    """All answers to one request.

    With a tokenizer the responses are those of a text model, without one those of `tensorrt_llm`.
    In a stream each response belongs to one answer; otherwise a single response has all of them.
    Tokens that are no text yet wait for the next text, unless `sends_empty_text`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        answers: Sequence[AnswerSettings],
        settings: RequestSettings,
        arrival_ns: int,
        *,
        sends_empty_text: bool = False,
    ) -> None:
        self._answers = [Answer(tokenizer, answer, arrival_ns) for answer in answers]
        self._settings = settings
        self._first = answers[0]
        self._is_text = tokenizer is not None
        self._sends_empty_text = sends_empty_text or not self._is_text

    def respond(self, chunks: Iterable[tuple[int, Chunk]], names: Collection[str]) -> Outcome:
        """Return what follows from chunks, each with the index of its answer."""
        outcome = Outcome()
        for index, chunk in chunks:
            answer = self._answers[index]
            if answer.is_finished:
                continue
            if chunk.finish_reason == "error":
                return Outcome([error_response(chunk.failure())], outcome.stopped, is_last=True)
            if answer.push(chunk):
                outcome.stopped.append(chunk.key)
            if self._settings.stream:
                outcome.responses += self._stream(answer, names)
        outcome.is_last = all(answer.is_finished for answer in self._answers)
        if outcome.is_last and not self._settings.stream:
            parts = [answer.take() for answer in self._answers]
            outcome.responses = [last_response(parts, self._settings, names, is_text=self._is_text)]
        return outcome

    def empty_response(self, names: Collection[str]) -> Any:
        """Return a response without text, which says that the request still runs."""
        return self._middle(Part(self._first), names)

    def _stream(self, answer: Answer, names: Collection[str]) -> list[Any]:
        if answer.is_finished:
            parts = [answer.take()]
            return [last_response(parts, self._settings, names, is_text=self._is_text)]
        if answer.has_text or self._sends_empty_text:
            return [self._middle(answer.take(), names)]
        return []

    def _middle(self, part: Part, names: Collection[str]) -> Any:
        if not self._is_text:
            return token_response(part, self._settings, names)
        is_only = len(self._answers) == 1
        return middle_response(part, self._settings, names, is_only=is_only)
