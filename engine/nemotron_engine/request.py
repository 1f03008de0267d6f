"""Requests to an engine and the chunks of its answers, the same for every lane."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.generation import MAX_SEED

GUIDE_TYPES = ("json", "json_schema", "regex", "ebnf_grammar", "structural_tag")


class Overloaded(NemotronError):
    """The queue is full. The request itself is valid."""

    kind = ErrorKind.OVERLOADED


class EngineBroken(NemotronError):
    """The engine has failed permanently. The request itself is valid."""

    kind = ErrorKind.FAILED


class TimedOut(NemotronError):
    """The time allowed for the request ended before its answer was complete."""

    kind = ErrorKind.TIMED_OUT


def samples(temperature: float | None, top_k: int | None) -> bool:
    """Return whether tokens are sampled: if there is a temperature or a `top_k` of more than 1.

    A temperature of 0 or a `top_k` of 1 means greedy decoding in any case.
    """
    if top_k == 1 or temperature == 0:
        return False
    return temperature is not None or bool(top_k)


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Parameters of one prompt's generation. `None` means the default in the field's comment.

    Without sampling (see `samples`) the most probable token is taken. A `top_p` of 0 means none.
    """

    request_id: str
    input_ids: tuple[int, ...]
    max_tokens: int
    end_ids: tuple[int, ...]
    temperature: float | None = None  # 1, if `top_k` turns sampling on
    top_k: int | None = None  # no limit
    top_p: float | None = None  # 1
    repetition_penalty: float | None = None  # 1
    presence_penalty: float | None = None  # 0
    frequency_penalty: float | None = None  # 0
    min_tokens: int | None = None  # 0
    seed: int | None = None  # 0
    log_probs: bool = False
    embedding_bias: tuple[float, ...] | None = None  # one value per token of the vocabulary
    guide_type: str | None = None  # one of `GUIDE_TYPES`
    guide: str | None = None
    seconds: float | None = None  # no limit

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled, by the function `samples`."""
        return samples(self.temperature, self.top_k)

    def check(self, vocab_size: int, max_seq_len: int) -> None:
        """Raise `NemotronError` if a value is invalid for every engine of this model."""
        count = len(self.input_ids)
        if not count:
            raise NemotronError("the prompt is empty", where="input_ids")
        if self.max_tokens < 1:
            raise NemotronError(f"max_tokens is {self.max_tokens}", remedy="ask for 1 or more")
        if count + self.max_tokens > max_seq_len:
            raise NemotronError(
                f"{count} prompt tokens and max_tokens {self.max_tokens} are more than the "
                f"{max_seq_len} this model holds",
                remedy=f"shorten the prompt or ask for at most {max(0, max_seq_len - count)}",
            )
        for name, ids in (("input_ids", self.input_ids), ("end_id", self.end_ids)):
            if bad := [id_ for id_ in ids if not 0 <= id_ < vocab_size]:
                raise NemotronError(
                    f"token id {bad[0]} is outside the vocabulary of {vocab_size}", where=name
                )
        self._check_range("temperature", 0, 1000)
        self._check_range("top_k", 0, 2**31 - 1)
        self._check_range("top_p", 0, 1)
        self._check_range("repetition_penalty", 0, 1000)
        self._check_range("presence_penalty", -2, 2)
        self._check_range("frequency_penalty", -2, 2)
        self._check_range("min_tokens", 0, self.max_tokens)
        self._check_range("seed", 0, MAX_SEED)
        if self.embedding_bias is not None and len(self.embedding_bias) != vocab_size:
            raise NemotronError(
                f"embedding_bias has {len(self.embedding_bias)} elements, "
                f"the vocabulary {vocab_size}",
                where="embedding_bias",
            )
        if self.guide_type is not None and self.guide_type not in GUIDE_TYPES:
            raise NemotronError(
                f"guided_decoding_guide_type is {self.guide_type!r}",
                remedy=f"use one of {', '.join(GUIDE_TYPES)}",
            )
        if (self.guide_type not in (None, "json")) != bool(self.guide):
            raise NemotronError(
                "guided_decoding_guide_type and guided_decoding_guide do not go together",
                remedy="send both, or the type json alone",
            )
        if self.repetition_penalty == 0:
            raise NemotronError("repetition_penalty is 0", remedy="use a positive number")

    def _check_range(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise NemotronError(f"{name} is {value}", remedy=f"use {low} to {high}")


class GenerationChunk(NamedTuple):
    """The next tokens of one request; `finish_reason` is `None` until the last chunk.

    "stop" means that the last token is one of the request's end ids, "length" that `max_tokens` are
    generated, "cancelled" that `cancel` came first; a chunk with "cancelled" has no tokens.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...] = ()
    finish_reason: str | None = None
    scheduled_ns: int = 0
    """Start of the first step with this request, ns since the epoch; set in the last chunk."""
