"""A generation as a client asks for it, and the pieces of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_SEED = 2**64 - 1
DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How to generate; None leaves the choice to the server, which is then greedy."""

    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    seed: int | None = None
    end_id: int | None = None
    stop_words: Sequence[str] = ()
    bad_words: Sequence[str] = ()
    embedding_bias_words: Sequence[str] = ()
    embedding_bias_weights: Sequence[float] = ()
    num_return_sequences: int | None = None
    """How many answers; each piece says in `sequence_index` which one it belongs to."""
    guided_decoding_guide_type: str | None = None
    guided_decoding_guide: str | None = None
    return_log_probs: bool | None = None
    return_perf_metrics: bool | None = None


Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A raw prompt as text or as token ids, or a conversation's messages."""


@dataclass(frozen=True)
class Times:
    """Nanoseconds since the epoch, by the server's clock."""

    arrival_ns: int
    first_scheduled_ns: int
    first_token_ns: int
    last_token_ns: int


@dataclass(frozen=True)
class Piece:
    """A part of an answer, or the whole of it; together the texts of a stream are the answer.

    `finish_reason` is empty until the last piece: "stop", "length" or "cancelled". `stop_reason` is
    the stop string that ended it, if one did. The counts are of tokens: the whole prompt's, and the
    generated ones of the answer so far.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    stop_reason: str = ""
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    sequence_index: int = 0
    """Which of `num_return_sequences` answers this belongs to."""
    log_probs: tuple[float, ...] = ()
    """One for each of `token_ids`, if `return_log_probs` asked for them."""
    cum_log_prob: float | None = None
    """Their sum over the answer so far."""
    times: Times | None = None
    """With the last piece, if `return_perf_metrics` asked for them."""
