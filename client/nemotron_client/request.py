"""Requests to Triton: to generate an answer, and to stop a running request."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from tritonclient.grpc import service_pb2

from nemotron_core.generation import Generation, Prompt, Value, request_inputs
from nemotron_core.wire import DATATYPES, STRUCT_FORMATS


def generation_request(
    model: str, request_id: str, prompt: Prompt, generation: Generation, *, stream: bool
) -> service_pb2.ModelInferRequest:
    """Return the request for a prompt. Raises `ValueError` as `request_inputs` does."""
    return _infer_request(model, request_id, request_inputs(prompt, generation, stream=stream))


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
        raw = b"".join(_encode(DATATYPES[name], value) for value in values)
        request.raw_input_contents.append(raw)
    return request


def _encode(datatype: str, value: Value) -> bytes:
    if datatype == "BYTES":
        data = str(value).encode()
        return struct.pack("<I", len(data)) + data
    return struct.pack("<" + STRUCT_FORMATS[datatype], value)
