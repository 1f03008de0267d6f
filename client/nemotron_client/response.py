"""What comes back from Triton, as typed pieces of an answer."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from tritonclient.grpc import service_pb2

from nemotron_core.generation import Piece, Times
from nemotron_core.wire import STRUCT_FORMATS

Values = Sequence[int | float | str]


def read_outputs(response: service_pb2.ModelInferResponse) -> dict[str, Values]:
    """The elements of each output by its name; ValueError if they are not what they say."""
    try:
        return {
            output.name: _decode(output.datatype, raw)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"model {response.model_name} sent a broken response: {error}") from error


def read_piece(outputs: Mapping[str, Values]) -> Piece:
    """The piece in a response. KeyError if there is no text in it; the rest may be missing.

    The classic ensemble sends neither reasons nor token ids.
    """

    def one(name: str, default: int | float | str) -> int | float | str:
        return (outputs.get(name) or (default,))[0]

    cum_log_probs = outputs.get("cum_log_probs")
    times = [outputs.get(f"{name}_time_ns") for name in _TIMES]
    return Piece(
        text="".join(map(str, outputs["text_output"])),
        token_ids=tuple(int(id_) for id_ in outputs.get("output_token_ids", ())),
        finish_reason=str(one("finish_reason", "")),
        stop_reason=str(one("stop_reason", "")),
        num_input_tokens=int(one("num_input_tokens", 0)),
        num_output_tokens=int(one("num_output_tokens", 0)),
        sequence_index=int(one("sequence_index", 0)),
        log_probs=tuple(float(p) for p in outputs.get("output_log_probs", ())),
        cum_log_prob=float(cum_log_probs[0]) if cum_log_probs else None,
        times=Times(*(int(found[0]) for found in times if found)) if all(times) else None,
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
    kind = STRUCT_FORMATS.get(datatype)
    if kind is None:
        return ()  # an output this client does not read
    return struct.unpack(f"<{len(raw) // struct.calcsize(kind)}{kind}", raw)
