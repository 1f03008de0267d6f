"""Responses of Triton as pieces of an answer."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2

from nemotron_core.generation import Alternatives, Generation, Piece, Times, read_alternatives
from nemotron_core.wire import STRUCT_FORMATS

Values = Sequence[Any]


def read_outputs(response: service_pb2.ModelInferResponse) -> dict[str, Values]:
    """Return the elements of each output by its name.

    Raises `ValueError` if an output has no bytes, or bytes that do not fit its datatype.
    """
    try:
        return {
            output.name: _decode(output.datatype, raw)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
    except (struct.error, ValueError) as error:
        raise ValueError(f"model {response.model_name} sent a broken response: {error}") from error


def read_pieces(outputs: Mapping[str, Values], generation: Generation) -> list[Piece]:
    """Return the pieces in the outputs of a response, one for each answer of which it has a text.

    Raises `KeyError` if they have no text. Every other output may be missing: the classic ensemble
    sends neither reasons nor token ids.
    """
    count = len(outputs["text_output"])
    if count <= 1:
        return [_read_row(outputs, 0, generation)]
    rows = [
        {
            name: values[row * len(values) // count : (row + 1) * len(values) // count]
            for name, values in outputs.items()
        }
        for row in range(count)
    ]
    return [_read_row(outputs, row, generation) for row, outputs in enumerate(rows)]


def _read_row(outputs: Mapping[str, Values], row: int, generation: Generation) -> Piece:
    def first(name: str, default: int | float | str) -> int | float | str:
        return (outputs.get(name) or (default,))[0]

    ids = tuple(int(id_) for id_ in outputs.get("output_token_ids", ()))
    num_output_tokens = int(first("num_output_tokens", 0))
    # Rows are filled up to the longest one. A row in the middle of a stream has fewer tokens.
    length = min(num_output_tokens, len(ids)) if "num_output_tokens" in outputs else len(ids)
    cum_log_probs = outputs.get("cum_log_probs")
    times = [outputs.get(f"{name}_time_ns") for name in _TIMES]
    return Piece(
        text="".join(outputs["text_output"]),
        token_ids=ids[:length],
        finish_reason=str(first("finish_reason", "")),
        stop_reason=str(first("stop_reason", "")),
        num_input_tokens=int(first("num_input_tokens", 0)),
        num_output_tokens=num_output_tokens,
        sequence_index=int(first("sequence_index", row)),
        log_probs=tuple(float(p) for p in outputs.get("output_log_probs", ()))[:length],
        cum_log_prob=float(cum_log_probs[0]) if cum_log_probs else None,
        times=Times(*(int(values[0]) for values in times if values)) if all(times) else None,
        top_log_probs=_table(outputs, "top", generation.num_top_log_probs or 0)[:length],
        prompt_log_probs=_table(outputs, "prompt_top", 1 + (generation.num_prompt_log_probs or 0))[
            : int(first("num_input_tokens", 1 << 31))
        ],
    )


def _table(outputs: Mapping[str, Values], name: str, width: int) -> tuple[Alternatives, ...]:
    """Return the rows of a table of alternatives, of `width` elements each."""
    ids, log_probs = (outputs.get(f"{name}_{what}", ()) for what in ("token_ids", "log_probs"))
    return read_alternatives(ids, log_probs, width) if ids else ()


_TIMES = ("arrival", "first_scheduled", "first_token", "last_token")


def _decode(datatype: str, raw: bytes) -> Values:
    if datatype == "BYTES":
        texts = []
        while raw:
            (length,) = struct.unpack_from("<I", raw)
            (text,) = struct.unpack_from(f"{length}s", raw, 4)
            texts.append(text.decode())
            raw = raw[4 + length :]
        return tuple(texts)
    element = STRUCT_FORMATS.get(datatype)
    if element is None:
        return ()  # an output that this client does not read
    return struct.unpack(f"<{len(raw) // struct.calcsize(element)}{element}", raw)
