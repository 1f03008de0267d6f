"""Responses of Triton as pieces of an answer."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from tritonclient.grpc import service_pb2

from nemotron_core.generation import Piece, Times
from nemotron_core.wire import STRUCT_FORMATS

Values = Sequence[int | float | str]


def read_outputs(response: service_pb2.ModelInferResponse) -> dict[str, Values]:
    """Return the elements of each output by its name.

    Raises `ValueError` if an output's bytes do not fit its datatype.
    """
    try:
        return {
            output.name: _decode(output.datatype, raw)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"model {response.model_name} sent a broken response: {error}") from error


def read_piece(outputs: Mapping[str, Values]) -> Piece:
    """Return the piece in the outputs of a response. Raises `KeyError` if they have no text.

    Every other output may be missing: the classic ensemble sends neither reasons nor token ids.
    """

    def first(name: str, default: int | float | str) -> int | float | str:
        return (outputs.get(name) or (default,))[0]

    cum_log_probs = outputs.get("cum_log_probs")
    times = [outputs.get(f"{name}_time_ns") for name in _TIMES]
    return Piece(
        text="".join(map(str, outputs["text_output"])),
        token_ids=tuple(int(id_) for id_ in outputs.get("output_token_ids", ())),
        finish_reason=str(first("finish_reason", "")),
        stop_reason=str(first("stop_reason", "")),
        num_input_tokens=int(first("num_input_tokens", 0)),
        num_output_tokens=int(first("num_output_tokens", 0)),
        sequence_index=int(first("sequence_index", 0)),
        log_probs=tuple(float(p) for p in outputs.get("output_log_probs", ())),
        cum_log_prob=float(cum_log_probs[0]) if cum_log_probs else None,
        times=Times(*(int(values[0]) for values in times if values)) if all(times) else None,
    )


_TIMES = ("arrival", "first_scheduled", "first_token", "last_token")


def _decode(datatype: str, raw: bytes) -> Values:
    if datatype == "BYTES":
        texts = []
        while raw:
            (length,) = struct.unpack_from("<I", raw)
            texts.append(raw[4 : 4 + length].decode())
            raw = raw[4 + length :]
        return tuple(texts)
    element = STRUCT_FORMATS.get(datatype)
    if element is None:
        return ()  # an output that this client does not read
    return struct.unpack(f"<{len(raw) // struct.calcsize(element)}{element}", raw)
