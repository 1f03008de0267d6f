"""The responses of the Triton models, from the parts of answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_core.wire import CACHE_OUTPUTS, PROMPT_OUTPUTS, TIME_OUTPUTS, TOP_OUTPUTS
from nemotron_engine.triton.answer import Entries, Part
from nemotron_engine.triton.prompts import RequestSettings
from nemotron_engine.triton.tensors import tensor

UNKNOWN = -1
"""Number of the KV cache's blocks, which no engine's library reports for a single request."""


def middle_response(
    part: Part, settings: RequestSettings, names: Collection[str], *, is_only: bool
) -> Any:
    """Return the response with a part in the middle of a streamed answer.

    Each tensor costs time, so there is only what changes with each part. `names` are the
    outputs that the client asked for. `is_only` tells whether the request has one answer only.
    """
    values: dict[str, Any] = {
        "text_output": [part.text.encode()],
        "output_token_ids": [part.token_ids],
        "num_output_tokens": [[part.num_output_tokens]],
    }
    if not is_only:
        values |= _indices([part])
    if settings.log_probs:
        values |= _log_probs([part], [part.log_probs])
    return _response(values | _alternatives([part], settings), names)


def last_response(
    parts: Sequence[Part], settings: RequestSettings, names: Collection[str], *, is_text: bool
) -> Any:
    """Return the response that ends a streamed answer, or that has all answers in its rows.

    Outputs of text models and of `tensorrt_llm` differ in their first ones only. Rows of different
    lengths are filled up with `pad_id`, and log-probabilities with 0.
    """
    values: dict[str, Any] = {}
    if is_text:
        values["text_output"] = [part.text.encode() for part in parts]
        values["output_token_ids"] = _padded([part.token_ids for part in parts], settings.pad_id)
        values["stop_reason"] = [[part.stop_reason.encode()] for part in parts]
    else:
        values |= _token_outputs(parts, settings.pad_id)
    values |= {
        "finish_reason": [[part.finish_reason.encode()] for part in parts],
        "num_input_tokens": [[part.settings.num_input_tokens] for part in parts],
        "num_output_tokens": [[part.num_output_tokens] for part in parts],
        **_indices(parts),
    }
    if settings.log_probs:
        values |= _log_probs(parts, _padded([part.log_probs for part in parts], 0.0))
    if settings.times:
        for position, output in enumerate(TIME_OUTPUTS):
            values[output.name] = [[part.times[position]] for part in parts]
    if settings.cache_stats:
        values |= {output.name: [[UNKNOWN]] * len(parts) for output in CACHE_OUTPUTS}
    return _response(values | _alternatives(parts, settings), names)


def token_response(part: Part, settings: RequestSettings, names: Collection[str]) -> Any:
    """Return a response of `tensorrt_llm` with a part in the middle of a streamed answer."""
    values = _token_outputs([part], settings.pad_id) | _indices([part])
    if settings.log_probs:
        values |= _log_probs([part], [part.log_probs])
    return _response(values, names)


def _token_outputs(parts: Sequence[Part], pad_id: int) -> dict[str, Any]:
    rows = _padded([part.token_ids for part in parts], pad_id)
    return {
        "output_ids": [[row] for row in rows],  # each answer has one beam
        "sequence_length": [[len(part.token_ids)] for part in parts],
        "acceptance_rate": [[0.0]] * len(parts),  # without a draft model, nothing is accepted
    }


def _indices(parts: Sequence[Part]) -> dict[str, Any]:
    return {
        "batch_index": [[part.settings.batch_index] for part in parts],
        "sequence_index": [[part.settings.sequence_index] for part in parts],
    }


def _log_probs(parts: Sequence[Part], rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {
        "output_log_probs": [[row] for row in rows],
        "cum_log_probs": [[part.cum_log_prob] for part in parts],
    }


def _alternatives(parts: Sequence[Part], settings: RequestSettings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if any(part.top_log_probs for part in parts):
        rows = [part.top_log_probs for part in parts]
        values |= zip((t.name for t in TOP_OUTPUTS), _tables(rows, settings.top), strict=True)
    if any(part.prompt_log_probs for part in parts):
        rows = [part.prompt_log_probs for part in parts]
        tables = _tables(rows, 1 + settings.prompt_top)
        values |= zip((t.name for t in PROMPT_OUTPUTS), tables, strict=True)
    return values


def _tables(rows: Sequence[Entries], width: int) -> tuple[Any, Any]:
    """Return token ids and log-probabilities [rows, longest row, width]; the id -1 fills up."""
    shape = (len(rows), max(map(len, rows)), width)
    ids, log_probs = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    for row, entries in enumerate(rows):
        for position, entry in enumerate(entries):
            for place, (id_, log_prob) in enumerate(entry[:width]):
                ids[row, position, place], log_probs[row, position, place] = id_, log_prob
    return ids, log_probs


def _padded(rows: Sequence[list[Any]], filler: float) -> list[list[Any]]:
    length = max(map(len, rows))
    return [row + [filler] * (length - len(row)) for row in rows]


def _response(values: dict[str, Any], names: Collection[str]) -> Any:
    return pb_utils.InferenceResponse(
        [tensor(name, elements) for name, elements in values.items() if name in names]
    )
