"""Requests to Triton: to generate an answer, and to stop a running request."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

from tritonclient.grpc import service_pb2

from nemotron_client.settings import RequestOptions
from nemotron_core.generation import Generation, Prompt, Value, request_inputs
from nemotron_core.wire import DATATYPES, STRUCT_FORMATS


def generation_request(
    model: str,
    request_id: str,
    prompt: Prompt,
    generation: Generation,
    options: RequestOptions = RequestOptions(),
    *,
    stream: bool,
) -> service_pb2.ModelInferRequest:
    """Return the request for a prompt. Raises `ValueError` as `request_inputs` does."""
    request = _infer_request(model, request_id, request_inputs(prompt, generation, stream=stream))
    for name, value in request_parameters(options).items():
        # tritonclient's types: Triton takes its own two parameters with no other.
        if name == "priority":
            request.parameters[name].uint64_param = value
        else:
            request.parameters[name].int64_param = value
    return request


def request_parameters(options: RequestOptions) -> dict[str, int]:
    """Return Triton's parameters of a request. Raises `ValueError` if one is out of range."""
    parameters: dict[str, int] = {}
    if options.priority is not None:
        parameters["priority"] = options.priority
    if options.timeout is not None:
        if not 0 < options.timeout < math.inf:
            raise ValueError(f"timeout is {options.timeout}: seconds, more than 0")
        parameters["timeout"] = max(1, round(options.timeout * 1e6))
    for name, value in parameters.items():
        if not 0 <= value < 2**63:
            raise ValueError(f"{name} is {value}: a number from 0 to {2**63 - 1}")
    return parameters


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
