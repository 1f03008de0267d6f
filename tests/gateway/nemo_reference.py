"""NeMo's documented rules for `PUT /generate`, written down step by step, without regard to speed.

What NeMo's server does is in its source; this is our own statement of it. Where the gateway differs
on purpose (docs/gateway.md), the difference is a line here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_core.text import Tokenizer

Tokens = Callable[[Sequence[int], int], list[tuple[int, float]]]
"""Returns the greedy tokens after a prompt, with their log-probabilities: as many as asked for."""
DEFAULTS: dict[str, Any] = {
    "tokens_to_generate": 64,
    "all_probs": False,
    "temperature": 1.0,
    "add_BOS": False,
    "greedy": False,
    "top_k": 0,
    "top_p": 0.9,
    "repetition_penalty": 1.0,
    "end_strings": ["<|endoftext|>"],
    "min_tokens_to_generate": 0,
    "compute_logprob": False,
    "random_seed": None,
}


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # NeMo takes `true` for 1


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


CHECKS: list[tuple[str, Callable[[Any], bool], str]] = [
    ("tokens_to_generate", lambda v: is_int(v) and v >= 1,
     "tokens_to_generate must be an integer greater than 0"),
    ("all_probs", lambda v: isinstance(v, bool), "all_probs must be a boolean value"),
    ("temperature", lambda v: is_number(v) and 0 < v <= 100,
     "temperature must be a positive number less than or equal to 100.0"),
    ("add_BOS", lambda v: isinstance(v, bool), "add_BOS must be a boolean value"),
    ("greedy", lambda v: isinstance(v, bool), "greedy must be a boolean value"),
    ("top_k", lambda v: is_number(v) and v >= 0, "top_k must be a positive integer number"),
    ("top_p", lambda v: is_number(v) and 0 <= v <= 1,
     "top_p must be a positive number less than or equal to 1.0"),
    ("repetition_penalty", lambda v: is_number(v) and v >= 1,
     "repetition_penalty must be a positive number no less than 1.0"),
    ("end_strings", lambda v: isinstance(v, list) and all(isinstance(s, str) for s in v),
     "expect end_strings to be a list of strings"),
    ("min_tokens_to_generate", lambda v: is_int(v) and v >= 0,
     "min_tokens_to_generate must be an integer no less than 0"),
    ("compute_logprob", lambda v: isinstance(v, bool), "compute_logprob must be a boolean value"),
    ("random_seed", lambda v: v is None or (is_int(v) and v >= 0),
     "random_seed must be a positive integer number or None"),
]  # fmt: skip
"""NeMo's checks, in its order, with its words."""


@dataclass(frozen=True)
class Expected:
    """What the gateway should answer: the whole content, or an error that begins like this."""

    content: dict[str, Any] | None = None
    error: str = ""


def answer(body: Any, tokenizer: Tokenizer, tokens: Tokens) -> Expected:
    """Return NeMo's answer to a request that decodes greedily, or the error for any request."""
    if not isinstance(body, dict) or "sentences" not in body:
        return Expected(error="sentences is missing")  # NeMo fails with status 500
    sentences = body["sentences"]
    if not isinstance(sentences, list) or not sentences:
        return Expected(error="sentences must be a list of strings")
    if any(not isinstance(sentence, str) for sentence in sentences):
        return Expected(error="sentences must be a list of strings")
    settings = DEFAULTS | {key: body[key] for key in DEFAULTS if key in body}
    for key, is_right, message in CHECKS:
        if not is_right(settings[key]):
            return Expected(error=message)
    if settings["all_probs"]:
        return Expected(error="all_probs is not served")
    if len(sentences) > 128:
        return Expected(error="Maximum number of sentences is 128")
    rows: dict[str, list[Any]] = {
        key: [] for key in ("sentences", "tokens", "logprob", "token_ids", "offsets")
    }
    for sentence in sentences:
        ids = ([tokenizer.id_of("<s>")] if settings["add_BOS"] else []) + tokenizer.encode(sentence)
        if not ids:
            return Expected(error="a sentence is empty")
        for key, value in zip(
            rows, _complete(sentence, ids, settings, tokenizer, tokens), strict=True
        ):
            rows[key].append(value)
    content: dict[str, Any] = dict(rows)
    if not settings["compute_logprob"]:
        content["logprob"] = None
    return Expected(content)


def _complete(
    sentence: str, prompt: list[Any], settings: dict[str, Any], tokenizer: Tokenizer, tokens: Tokens
) -> tuple[Any, ...]:
    ids = list(prompt)
    log_probs: list[float | None] = [None] * (len(prompt) - 1)
    offsets = [
        min(len(sentence), len(tokenizer.decode(prompt[:place], show_control=True)))
        for place in range(len(prompt))
    ]
    text = sentence
    for id_, log_prob in tokens(prompt, settings["tokens_to_generate"]):
        offsets.append(len(text))
        ids.append(id_)
        log_probs.append(log_prob)
        text = sentence + tokenizer.decode(ids[len(prompt) :], show_control=True)
        # The end token ends it, or an end string at the end of the text, however few tokens are
        # generated: the minimum only keeps the model from the end token.
        if id_ == tokenizer.id_of("</s>"):
            break
        if any(end and text.endswith(end) for end in settings["end_strings"]):
            break
    pieces = [tokenizer.piece(id_) for id_ in ids]
    return text, pieces, log_probs, ids, offsets
