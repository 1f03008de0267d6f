"""What comes back from Triton, as typed pieces of an answer."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

_FORMATS = {"INT32": "i", "FP32": "f", "BOOL": "?"}


@dataclass(frozen=True)
class Piece:
    """A part of an answer, or the whole of it; together the texts of a stream are the answer.

    `finish_reason` is empty until the last piece: "stop", "length" or "cancelled". `stop_reason` is
    the stop string that ended it, if one did. The counts are of tokens: the whole prompt's, and the
    generated ones of the answer so far.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str
    num_input_tokens: int
    num_output_tokens: int


def read_piece(response: service_pb2.ModelInferResponse) -> Piece:
    """The piece in a response; ValueError if it is not the ensemble's."""
    values = {
        output.name: _decode(output.datatype, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    try:
        return Piece(
            text="".join(map(str, values["text_output"])),
            token_ids=tuple(int(id_) for id_ in values["output_token_ids"]),
            finish_reason=str(values["finish_reason"][0]),
            stop_reason=str(values["stop_reason"][0]),
            num_input_tokens=int(values["num_input_tokens"][0]),
            num_output_tokens=int(values["num_output_tokens"][0]),
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"model {response.model_name} does not answer with {error}") from error


def _decode(datatype: str, raw: bytes) -> tuple[int | float | str, ...]:
    if datatype == "BYTES":
        texts = []
        while raw:
            (length,) = struct.unpack_from("<I", raw)
            texts.append(raw[4 : 4 + length].decode())
            raw = raw[4 + length :]
        return tuple(texts)
    kind = _FORMATS.get(datatype)
    if kind is None:
        return ()  # an output this client does not read
    return struct.unpack(f"<{len(raw) // struct.calcsize(kind)}{kind}", raw)
