"""One answer: the engine's tokens become text, and text becomes the parts that clients get."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from nemotron_core.text import AnswerStream, Tokenizer
from nemotron_engine.protocol import Chunk
from nemotron_engine.triton.prompts import AnswerSettings

Entries = list[list[tuple[int, float]]]
"""Tokens and their log-probabilities at each position."""


@dataclass
class Part:
    """What one response, or one row of a response, says of one answer."""

    settings: AnswerSettings
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top_log_probs: Entries = field(default_factory=list)
    prompt_log_probs: Entries = field(default_factory=list)
    num_output_tokens: int = 0
    """Number of the answer's tokens so far."""
    cum_log_prob: float = 0.0
    """Sum of the log-probabilities of the answer so far."""
    finish_reason: str = ""
    """Empty until the last part."""
    stop_reason: str = ""
    times: tuple[int, ...] = ()
    """The times of `wire.TIME_OUTPUTS` in ns since the epoch, in the last part."""


class Answer:
    """Collects the tokens of one answer until they are sent.

    Without a tokenizer, the answer has no text.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, settings: AnswerSettings, arrival_ns: int
    ) -> None:
        self._text: AnswerStream | None = None
        if tokenizer is not None:
            self._text = AnswerStream(
                tokenizer,
                chat=settings.chat,
                end_ids=settings.end_ids,
                stop_strings=settings.stop_strings,
            )
        self._matches_text = bool(settings.stop_strings)
        self._arrival_ns = arrival_ns
        self._first_token_ns = 0
        self._part = Part(settings, text=settings.prefix, token_ids=list(settings.prefix_ids))
        self.is_finished = False

    @property
    def has_text(self) -> bool:
        """Whether there is text that was not taken yet."""
        return bool(self._part.text)

    def push(self, chunk: Chunk) -> bool:
        """Add a chunk. Return whether the answer ended before the engine knew: by a stop string.

        Then the chunk is cut after the token that completes the stop string, so that an answer has
        the same tokens however many of them come at once.
        """
        if self.is_finished:  # tokens that the engine generated before it was told to stop
            return False
        part = self._part
        had_ended = bool(chunk.finish_reason)
        if chunk.token_ids and not self._first_token_ns:
            self._first_token_ns = time.time_ns()
        part.text += self._push_text(chunk)
        part.token_ids += chunk.token_ids
        part.log_probs += chunk.log_probs
        part.top_log_probs += chunk.top_log_probs
        part.prompt_log_probs += chunk.prompt_log_probs
        part.cum_log_prob += sum(chunk.log_probs)
        part.num_output_tokens += len(chunk.token_ids)
        if chunk.finish_reason:
            self.is_finished = True
            part.finish_reason = chunk.finish_reason
            part.stop_reason = (self._text and self._text.stop_reason) or ""
            now = time.time_ns()
            scheduled, first = chunk.scheduled_ns or now, self._first_token_ns or now
            part.times = (self._arrival_ns, scheduled, first, now)
        return self.is_finished and not had_ended

    def take(self) -> Part:
        """Return what was not taken yet."""
        part = self._part
        self._part = Part(
            part.settings, num_output_tokens=part.num_output_tokens, cum_log_prob=part.cum_log_prob
        )
        return part

    def _push_text(self, chunk: Chunk) -> str:
        ids = chunk.token_ids
        if self._text is None:
            return ""
        if not self._matches_text:
            return self._text.push(ids, chunk.finish_reason)
        text = ""
        for count, id_ in enumerate(ids, 1):
            text += self._text.push([id_], chunk.finish_reason if count == len(ids) else "")
            if self._text.stop_reason is not None:
                del ids[count:], chunk.log_probs[count:], chunk.top_log_probs[count:]
                chunk.finish_reason = "stop"
                return text
        if not ids:
            text = self._text.push(ids, chunk.finish_reason)
        return text
