"""A generation request, and how it lies on Triton's wire."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How to generate; None leaves the choice to the server, which is then greedy."""

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


WIRE_TYPES = {
    "max_tokens": "INT32",
    "temperature": "FP32",
    "top_p": "FP32",
    "top_k": "INT32",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
    "min_tokens": "INT32",
    "seed": "UINT64",
    "end_id": "INT32",
    "stop_words": "BYTES",
    "text_input": "BYTES",
    "messages": "BYTES",
    "stream": "BOOL",
    "stop": "BOOL",
    "input_ids": "INT32",
    "input_lengths": "INT32",
    "request_output_len": "INT32",
}
"""Triton's data type of each input that this client sends; a field's name is its input's name."""

_FORMATS = {"INT32": "<i", "UINT64": "<Q", "FP32": "<f", "BOOL": "<?"}

Value = int | float | bool | str


def generation_request(
    model: str,
    request_id: str,
    prompt: str | Sequence[Mapping[str, str]],
    generation: Generation,
    *,
    stream: bool,
) -> service_pb2.ModelInferRequest:
    """The request for a raw prompt (a string) or for messages (a conversation).

    ValueError names a value that does not fit its type on the wire.
    """
    inputs: dict[str, Sequence[Value]] = {"stream": [stream]}
    if isinstance(prompt, str):
        inputs["text_input"] = [prompt]
    else:
        inputs["messages"] = [json.dumps([dict(message) for message in prompt])]
    for field in dataclasses.fields(generation):
        value = getattr(generation, field.name)
        if value is None or value == ():
            continue
        inputs[field.name] = value if WIRE_TYPES[field.name] == "BYTES" else [value]
    return _infer_request(model, request_id, inputs)


def stop_request(model: str, request_id: str) -> service_pb2.ModelInferRequest:
    """Ends the running request of that id; the classic contract wants the other inputs too."""
    inputs: dict[str, Sequence[Value]] = {}
    inputs |= {"stop": [True], "input_ids": [0], "input_lengths": [1], "request_output_len": [1]}
    return _infer_request(model, request_id, inputs)


def _infer_request(
    model: str, request_id: str, inputs: Mapping[str, Sequence[Value]]
) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, values in inputs.items():
        request.inputs.add(name=name, datatype=WIRE_TYPES[name], shape=[1, len(values)])
        try:
            raw = b"".join(_encode(WIRE_TYPES[name], value) for value in values)
        except (struct.error, OverflowError, AttributeError) as error:
            raise ValueError(f"{name}: {list(values)} is no {WIRE_TYPES[name]}: {error}") from error
        request.raw_input_contents.append(raw)
    return request


def _encode(datatype: str, value: Value) -> bytes:
    if datatype == "BYTES":
        data = str(value).encode()
        return struct.pack("<I", len(data)) + data
    return struct.pack(_FORMATS[datatype], value)
