"""Requests to Triton: to generate an answer, and to stop a running request."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tritonclient.grpc import service_pb2

from nemotron_core.generation import Generation, Prompt
from nemotron_core.wire import DATATYPES, STRUCT_FORMATS

Value = int | float | bool | str


def generation_request(
    model: str,
    request_id: str,
    prompt: Prompt,
    generation: Generation,
    *,
    stream: bool,
) -> service_pb2.ModelInferRequest:
    """Return the request for a prompt.

    Raises `ValueError` that names a value if it does not fit its type on the wire. Settings that
    are `None` or empty are left out.
    """
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
        if value is None or (isinstance(value, list | tuple) and not value):
            continue
        inputs[field.name] = value if isinstance(value, list | tuple) else [value]
    return _infer_request(model, request_id, inputs)


def _messages_json(messages: Sequence[Mapping[str, Any]]) -> str:
    try:
        return json.dumps([dict(message) for message in messages])
    except (TypeError, ValueError) as error:
        raise ValueError(f"messages: {error}") from error


def stop_request(model: str, request_id: str) -> service_pb2.ModelInferRequest:
    """Return the request that stops the running request `request_id`.

    The classic contract requires the inputs beside `stop` too.
    """
    inputs: dict[str, Sequence[Value]] = {}
    inputs |= {"stop": [True], "input_ids": [0], "input_lengths": [1], "request_output_len": [1]}
    return _infer_request(model, request_id, inputs)


def _infer_request(
    model: str, request_id: str, inputs: Mapping[str, Sequence[Value]]
) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, values in inputs.items():
        request.inputs.add(name=name, datatype=DATATYPES[name], shape=[1, len(values)])
        try:
            raw = b"".join(_encode(DATATYPES[name], value) for value in values)
        except (struct.error, OverflowError, AttributeError) as error:
            raise ValueError(f"{name}: {list(values)} is no {DATATYPES[name]}: {error}") from error
        request.raw_input_contents.append(raw)
    return request


def _encode(datatype: str, value: Value) -> bytes:
    if datatype == "BYTES":
        data = str(value).encode()
        return struct.pack("<I", len(data)) + data
    return struct.pack("<" + STRUCT_FORMATS[datatype], value)
