"""The checks of a request to an engine, the same for every library.

Most libraries end for everyone if one request is wrong, so nothing reaches them unchecked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from nemotron_core.engine_settings import EngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.generation import MAX_SEED
from nemotron_engine.protocol import GUIDE_TYPES, KEY_BYTES, Capabilities, Request

MAX_SEQUENCES = 1024
"""Limit of the stop sequences, and of the bad sequences, of one request."""
SHORTEN = "shorten the conversation: what is scored is never cut"
LABELS = {
    "guide_type": "a guide",
    "bias": "a bias",
    "temperature": "a temperature above 0",
    "log_probs": "log-probabilities",
    "top_log_probs": "log-probabilities",
    "prompt_log_probs": "log-probabilities",
}
"""What a field of a request is called in errors, if not by its name."""
NEUTRAL: dict[str, object] = {"min_tokens": 1}
"""A value of a field, besides its default, that changes nothing."""
RANGES = {
    "top_k": (0, 2**31 - 1),
    "top_p": (0, 1),
    "repetition_penalty": (0, 1000),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (0, MAX_SEED),
}
"""Smallest and largest value of each number whose range depends on nothing else."""


def check_request(request: Request, settings: EngineSettings, capabilities: Capabilities) -> None:
    """Raise `NemotronError` if a value is invalid, or needs something that the engine lacks."""
    _check_kind(request, capabilities.kind)
    _check_lengths(request, settings.max_seq_len)
    _check_ids(request, settings.vocab_size)
    if len(request.key) != KEY_BYTES:
        raise NemotronError(f"the key has {len(request.key)} bytes", remedy=f"use {KEY_BYTES}")
    for name, (low, high) in RANGES.items():
        _check_range(name, getattr(request, name), low, high)
    _check_range("temperature", request.temperature, 0, capabilities.max_temperature)
    _check_range("min_tokens", request.min_tokens, 0, request.max_tokens)
    if not request.chunk_seconds >= 0:
        raise NemotronError(f"chunk_seconds is {request.chunk_seconds}", remedy="use 0 or more")
    if request.repetition_penalty == 0:
        raise NemotronError("repetition_penalty is 0", remedy="use a positive number")
    if request.seconds is not None and not request.seconds > 0:
        raise NemotronError(f"the time limit is {request.seconds} seconds")
    for weight in request.bias.values():
        if not math.isfinite(weight):
            raise NemotronError(f"a bias is {weight}", remedy="use a finite number")
    _check_guide(request)
    _check_draft(request, capabilities.without)
    for feature in _needed_features(request):
        if feature not in capabilities.features:
            raise NemotronError(f"this engine has no {feature.replace('_', ' ')}")
    if request.guide_type and request.guide_type not in capabilities.guide_types:
        raise NemotronError(
            f"guided_decoding_guide_type {request.guide_type!r} is not on this engine",
            remedy=f"use {' or '.join(capabilities.guide_types)}",
        )
    for count in (request.top_log_probs, request.prompt_log_probs or 0):
        _check_range("number of alternatives", count, 0, capabilities.max_log_probs)


def _check_draft(request: Request, without: Iterable[str]) -> None:
    """Raise `NemotronError` if a field has a value that does not go with the engine's draft."""
    defaults = Request(key=request.key, input_ids=[], max_tokens=0)
    for name in without:
        if getattr(request, name) not in (getattr(defaults, name), NEUTRAL.get(name)):
            raise NemotronError(
                f"{LABELS.get(name, name)} and the draft of this engine do not go together",
                where=name,
                remedy="leave it out, or ask an engine that was built without `draft`",
            )


def check_scored_length(count: int, max_seq_len: int) -> None:
    """Raise `NemotronError` if a sequence to score has more tokens than the model holds."""
    if count > max_seq_len:
        raise NemotronError(
            f"{count} tokens are more than the {max_seq_len} this model holds", remedy=SHORTEN
        )


def _check_kind(request: Request, kind: str) -> None:
    if request.scores and kind != "reward":
        raise NemotronError(
            "this engine generates text and gives no scores",
            remedy="ask an engine that was built from a reward model",
        )
    if kind == "reward" and not request.scores:
        raise NemotronError(
            "this engine is a reward model: it scores conversations and generates no text",
            remedy="send a conversation to the model `reward`, or ask the engine of another model",
        )


def _check_lengths(request: Request, max_seq_len: int) -> None:
    count = len(request.input_ids)
    if not count:
        raise NemotronError("the prompt is empty", where="input_ids")
    if request.scores:
        check_scored_length(count, max_seq_len)
        if request.max_tokens:
            raise NemotronError(
                f"max_tokens is {request.max_tokens}", remedy="ask for 0: scores are no tokens"
            )
        return
    if request.max_tokens < 1:
        raise NemotronError(f"max_tokens is {request.max_tokens}", remedy="ask for 1 or more")
    if count + request.max_tokens > max_seq_len:
        raise NemotronError(
            f"{count} prompt tokens and max_tokens {request.max_tokens} are more than the "
            f"{max_seq_len} this model holds",
            remedy=f"shorten the prompt or ask for at most {max(0, max_seq_len - count)}",
        )
    for name in ("stop_sequences", "bad_sequences"):
        sequences = getattr(request, name)
        if len(sequences) > MAX_SEQUENCES or not all(sequences):
            raise NemotronError(
                f"{len(sequences)} {name}", remedy=f"send at most {MAX_SEQUENCES}, none empty"
            )


def _check_ids(request: Request, vocab_size: int) -> None:
    lists: dict[str, Iterable[int]] = {
        "input_ids": request.input_ids,
        "end_id": request.end_ids,
        "stop_words_list": (id_ for ids in request.stop_sequences for id_ in ids),
        "bad_words_list": (id_ for ids in request.bad_sequences for id_ in ids),
        "embedding_bias": request.bias,
    }
    for name, ids in lists.items():
        for id_ in ids:
            if not 0 <= id_ < vocab_size:
                raise NemotronError(
                    f"token id {id_} is outside the vocabulary of {vocab_size}", where=name
                )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise NemotronError(f"{name} is {value}", remedy=f"use {low} to {high}")


def _check_guide(request: Request) -> None:
    if request.guide_type and request.guide_type not in GUIDE_TYPES:
        raise NemotronError(
            f"guided_decoding_guide_type is {request.guide_type!r}",
            remedy=f"use one of {', '.join(GUIDE_TYPES)}",
        )
    if (request.guide_type not in ("", "json")) != bool(request.guide):
        raise NemotronError(
            "guided_decoding_guide_type and guided_decoding_guide do not go together",
            remedy="send both, or only the type json",
        )


def _needed_features(request: Request) -> list[str]:
    needs = {
        "bad_words": request.bad_sequences,
        "bias": request.bias,
        "guides": request.guide_type,
        "lora": request.lora,
        "priorities": request.priority,
        "top_log_probs": request.top_log_probs,
        "prompt_log_probs": request.prompt_log_probs is not None,
    }
    return [feature for feature, is_needed in needs.items() if is_needed]
