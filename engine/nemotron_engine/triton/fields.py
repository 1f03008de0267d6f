"""The inputs that text models and `tensorrt_llm` read in the same way."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from nemotron_engine.triton.prompts import RequestSettings
from nemotron_engine.triton.tensors import Inputs, Options

MAX_SEQUENCES = 64
GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this one are greedy."""


def sequence_count(inputs: Inputs, row: int) -> int:
    """Return the number of answers to a row's prompt."""
    count: int = inputs.value(row, "num_return_sequences", default=1)
    if not 1 <= count <= MAX_SEQUENCES:
        raise NemotronError(f"num_return_sequences is {count}", remedy=f"use 1 to {MAX_SEQUENCES}")
    return count


def request_settings(inputs: Inputs, options: Options, *, stream: bool) -> RequestSettings:
    """Return the settings that all answers to a request have in common, from its first row."""
    return RequestSettings(
        stream=stream,
        single_tokens=options.chunk_tokens is not None,
        log_probs=inputs.value(0, "return_log_probs", default=False),
        top=_alternatives(inputs, 0, "num_top_log_probs") or 0,
        prompt_top=_alternatives(inputs, 0, "num_prompt_log_probs") or 0,
        times=inputs.value(0, "return_perf_metrics", default=False),
        cache_stats=inputs.value(0, "return_kv_cache_reuse_stats", default=False),
        pad_id=inputs.value(0, "pad_id", default=0),
    )


def alternatives(inputs: Inputs, row: int) -> dict[str, Any]:
    """Return the fields that ask for the log-probabilities of more tokens than the chosen ones."""
    return {
        "top_log_probs": _alternatives(inputs, row, "num_top_log_probs") or 0,
        "prompt_log_probs": _alternatives(inputs, row, "num_prompt_log_probs"),
    }


def _alternatives(inputs: Inputs, row: int, name: str) -> int | None:
    """Return a number of alternatives, where -1 means that they are not asked for."""
    count: int | None = inputs.value(row, name)
    return None if count == -1 else count


def end_ids_of(inputs: Inputs, row: int, default: Sequence[int]) -> list[int]:
    """Return the tokens that end an answer: those of `end_id`, and `stop_token_ids`.

    An `end_id` of -1 means none.
    """
    end_id = inputs.value(row, "end_id")
    ids = list(default) if end_id is None else [end_id] if end_id != -1 else []
    return [*ids, *(id_ for id_ in inputs.values(row, "stop_token_ids") or () if id_ not in ids)]


def common_fields(inputs: Inputs, row: int, options: Options, request_id: str) -> dict[str, Any]:
    """Return the fields of a request that text models and `tensorrt_llm` read in the same way."""
    fields = {
        "repetition_penalty": inputs.value(row, "repetition_penalty"),
        "presence_penalty": inputs.value(row, "presence_penalty"),
        "frequency_penalty": inputs.value(row, "frequency_penalty"),
        "min_tokens": _either(inputs, row, "min_tokens", "min_length"),
        "log_probs": inputs.value(row, "return_log_probs"),
        "guide_type": inputs.value(row, "guided_decoding_guide_type"),
        "guide": inputs.value(row, "guided_decoding_guide"),
        "lora": _lora(inputs, row),
    }
    return {
        "key": b"",
        "seconds": options.seconds,
        "priority": options.priority,
        "request_id": request_id,
        **{name: value for name, value in fields.items() if value is not None},
    }


def _lora(inputs: Inputs, row: int) -> str | None:
    """Return the name of the adapter to compute with; a classic number is the name in digits."""
    name, number = inputs.value(row, "lora_name"), inputs.value(row, "lora_task_id")
    if name and number is not None:
        raise NemotronError("lora_name and lora_task_id do not go together", where="lora_name")
    return name if number is None else str(number)


def sampling(inputs: Inputs, row: int, top_k_name: str, top_p_name: str) -> dict[str, Any]:
    """Return the fields that say how tokens are drawn, by the rule of the classic backend.

    Tokens are drawn only if `top_k` is more than 1, or if `top_p` is positive and `top_k` is not 1;
    a temperature alone does not draw. Without a seed each request gets a new one.
    """
    temperature = inputs.value(row, "temperature", default=1.0)
    top_k = inputs.value(row, top_k_name, default=0)
    top_p = inputs.value(row, top_p_name, default=0.0)
    if 0 <= temperature < GREEDY_TEMPERATURE or top_k == 1 or (not top_k and not top_p):
        # Values that make no sense are refused, even where they have no effect.
        return {"temperature": min(temperature, 0.0), "top_k": top_k, "top_p": top_p}
    seed = _either(inputs, row, "seed", "random_seed")
    return {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p or 1.0,
        "seed": secrets.randbits(63) if seed is None else seed,
    }


def spellings(tokenizer: Tokenizer, word: str) -> list[list[int]]:
    """Return a word's tokens where it continues a text, and where a space is in front of it."""
    newline = tokenizer.encode("\n")
    lists = [tokenizer.encode("\n" + text)[len(newline) :] for text in (word, " " + word)]
    return [ids for number, ids in enumerate(lists) if ids and ids not in lists[:number]]


def token_sequences(flat: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
    """Return the sequences of the classic form: all tokens, and where each sequence ends.

    >>> token_sequences([7, 8, 9], [2, 3, -1])
    [[7, 8], [9]]
    """
    positions = [end for end in ends if end > 0]
    starts = [0, *positions]
    if any(end > len(flat) or end <= start for start, end in zip(starts, positions, strict=False)):
        raise NemotronError(f"the ends {positions} do not rise up to the {len(flat)} tokens")
    return [list(flat[start:end]) for start, end in itertools.pairwise(starts)]


def _either(inputs: Inputs, row: int, name: str, older_name: str) -> Any:
    """Return an input, which older releases of the contract call by another name."""
    value = inputs.value(row, name)
    return inputs.value(row, older_name) if value is None else value
