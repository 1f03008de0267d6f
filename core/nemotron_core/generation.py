"""A client's parameters of a generation, and the pieces of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_SEED = 2**64 - 1
"""Largest seed of a sample, as the contract's UINT64 holds it."""
DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Parameters of a generation. `None` leaves the choice to the server, which is then greedy."""

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
    """Number of answers to the prompt; see `Piece.sequence_index`."""
    guided_decoding_guide_type: str | None = None
    guided_decoding_guide: str | None = None
    return_log_probs: bool | None = None
    return_perf_metrics: bool | None = None


Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A raw prompt as text or as token ids, or the messages of a conversation."""


@dataclass(frozen=True)
class Times:
    """Times of one answer, in nanoseconds since the epoch by the server's clock."""

    arrival_ns: int
    first_scheduled_ns: int
    first_token_ns: int
    last_token_ns: int


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The answer is the concatenation of its pieces' texts."""

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    """"stop", "length" or "cancelled" in the last piece; empty before it."""
    stop_reason: str = ""
    """The stop string that ended the answer, if one did."""
    num_input_tokens: int = 0
    """Number of tokens of the prompt."""
    num_output_tokens: int = 0
    """Number of tokens of the answer so far."""
    sequence_index: int = 0
    """Index of the answer, among `num_return_sequences`, that this piece belongs to."""
    log_probs: tuple[float, ...] = ()
    """Log-probability of each of `token_ids`, if `return_log_probs` was set."""
    cum_log_prob: float | None = None
    """Sum of the log-probabilities of the answer so far."""
    times: Times | None = None
    """Times of the answer, in its last piece, if `return_perf_metrics` was set."""
