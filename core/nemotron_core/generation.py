"""A client's parameters of a generation, its inputs on Triton's wire, the pieces of its answer."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from nemotron_core.wire import DATATYPES, STRUCT_FORMATS

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
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the answer, besides those that `end_id` says."""
    bad_words: Sequence[str] = ()
    embedding_bias_words: Sequence[str] = ()
    embedding_bias_weights: Sequence[float] = ()
    bias_token_ids: Sequence[int] = ()
    bias_values: Sequence[float] = ()
    """Number to add to the logit of each of `bias_token_ids`."""
    num_return_sequences: int | None = None
    """Number of answers to the prompt; see `Piece.sequence_index`."""
    guided_decoding_guide_type: str | None = None
    guided_decoding_guide: str | None = None
    add_generation_prompt: bool | None = None
    """Whether the answer's turn is opened after `messages`; it is, unless this is `False`."""
    continue_final_message: bool | None = None
    """Whether the answer goes on with the last of `messages`, which must be the assistant's."""
    return_log_probs: bool | None = None
    num_top_log_probs: int | None = None
    """Number of the most probable tokens to return at each token of the answer."""
    num_prompt_log_probs: int | None = None
    """The same at each token of the prompt; 0 returns only the token's own log-probability."""
    return_perf_metrics: bool | None = None
    lora_name: str | None = None
    """Name of the LoRA adapter to compute with. Without one it is the model itself."""


Alternatives = tuple[tuple[int, float], ...]
"""Token ids and their log-probabilities, the most probable first."""
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A raw prompt as text or as token ids, or the messages of a conversation."""
Value = int | float | bool | str


def request_inputs(
    prompt: Prompt, generation: Generation, *, stream: bool
) -> dict[str, Sequence[Value]]:
    """Return the elements of each input of a request to a text model, by the input's name.

    Settings that are `None` or empty are left out. On Triton's wire a temperature alone does not
    sample, so `top_p` 1 is added to it. Raises `ValueError` that names an input whose elements do
    not fit its datatype.

    >>> request_inputs("Hi", Generation(max_tokens=5, temperature=2), stream=True)
    {'stream': [True], 'text_input': ['Hi'], 'max_tokens': [5], 'temperature': [2], 'top_p': [1.0]}
    """
    inputs: dict[str, Sequence[Value]] = {"stream": [stream]}
    if isinstance(prompt, str):
        inputs["text_input"] = [prompt]
    elif not prompt:
        raise ValueError("the prompt is empty")
    elif isinstance(prompt[0], int):
        inputs["input_token_ids"] = cast("Sequence[int]", prompt)
    else:
        inputs["messages"] = [_messages_json(cast("Sequence[Mapping[str, Any]]", prompt))]
    for name, value in vars(generation).items():
        if isinstance(value, list | tuple):
            if value:
                inputs[name] = value
        elif value is not None:
            inputs[name] = [value]
    if generation.temperature and generation.top_p is None:
        inputs["top_p"] = [1.0]
    for name, values in inputs.items():
        _check_range(name, values)
    return inputs


def _messages_json(messages: Sequence[Mapping[str, Any]]) -> str:
    try:
        return json.dumps([dict(message) for message in messages])
    except (TypeError, ValueError) as error:
        raise ValueError(f"messages: {error}") from error


def _check_range(name: str, values: Sequence[Value]) -> None:
    element = STRUCT_FORMATS.get(DATATYPES[name])
    try:
        if element is None:
            "".join(map(str, values)).encode()
        else:
            struct.pack(f"<{len(values)}{element}", *values)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"{name} is no {DATATYPES[name]}: {error}") from error


def read_alternatives(
    ids: Sequence[int], log_probs: Sequence[float], width: int
) -> tuple[Alternatives, ...]:
    """Return the rows of two of the wire's tables, in which the id -1 stands for no token.

    >>> read_alternatives([5, 7, 8, -1], [-0.5, -1.0, 0.0, 0.0], 2)
    (((5, -0.5), (7, -1.0)), ((8, 0.0),))
    """
    rows = range(0, len(ids), width)
    return tuple(
        tuple(
            (id_, log_prob)
            for id_, log_prob in zip(
                ids[row : row + width], log_probs[row : row + width], strict=True
            )
            if id_ >= 0
        )
        for row in rows
    )


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
    top_log_probs: tuple[Alternatives, ...] = ()
    """Most probable tokens at each of `token_ids`, if `num_top_log_probs` was set."""
    prompt_log_probs: tuple[Alternatives, ...] = ()
    """At each token of the prompt, the token itself and then the most probable ones, if
    `num_prompt_log_probs` was set; at the first token there is nothing."""
    times: Times | None = None
    """Times of the answer, in its last piece, if `return_perf_metrics` was set."""


def join_pieces(pieces: Sequence[Piece]) -> Piece:
    """Return the pieces of one answer, in their order, as one piece.

    >>> join_pieces([Piece("He", (1,)), Piece("llo", (2,), "stop", num_output_tokens=2)]).text
    'Hello'
    """
    return dataclasses.replace(
        pieces[-1],
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        log_probs=tuple(log_prob for piece in pieces for log_prob in piece.log_probs),
        top_log_probs=tuple(entry for piece in pieces for entry in piece.top_log_probs),
        prompt_log_probs=tuple(entry for piece in pieces for entry in piece.prompt_log_probs),
    )
