"""A generation request, and how it lies on Triton's wire."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
    bad_words: Sequence[str] = ()
    embedding_bias_words: Sequence[str] = ()
    embedding_bias_weights: Sequence[float] = ()
    num_return_sequences: int | None = None
    """How many answers; each piece says in `sequence_index` which one it belongs to."""
    guided_decoding_guide_type: str | None = None
    guided_decoding_guide: str | None = None
    return_log_probs: bool | None = None
    return_perf_metrics: bool | None = None


Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A raw prompt as text or as token ids, or a conversation's messages."""

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
    "bad_words": "BYTES",
    "embedding_bias_words": "BYTES",
    "embedding_bias_weights": "FP32",
    "num_return_sequences": "INT32",
    "guided_decoding_guide_type": "BYTES",
    "guided_decoding_guide": "BYTES",
    "return_log_probs": "BOOL",
    "return_perf_metrics": "BOOL",
    "input_token_ids": "INT32",
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
    prompt: Prompt,
    generation: Generation,
    *,
    stream: bool,
) -> service_pb2.ModelInferRequest:
    """The request for a prompt; ValueError names a value that does not fit its type on the wire."""
    inputs: dict[str, Sequence[Value]] = {"stream": [stream]}
    if isinstance(prompt, str):
        inputs["text_input"] = [prompt]
    elif not prompt:
        raise ValueError("the prompt is empty")
    elif isinstance(prompt[0], int):
        inputs["input_token_ids"] = cast("Sequence[int]", prompt)
    else:
        inputs["messages"] = [_messages_json(cast("Sequence[Mapping[str, Any]]", prompt))]
    for field in dataclasses.fields(generation):
        value = getattr(generation, field.name)
        if value is None or value == ():
            continue
        inputs[field.name] = value if isinstance(value, list | tuple) else [value]
    return _infer_request(model, request_id, inputs)


def _messages_json(messages: Sequence[Mapping[str, Any]]) -> str:
    try:
        return json.dumps([dict(message) for message in messages])
    except (TypeError, ValueError) as error:
        raise ValueError(f"messages: {error}") from error


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
