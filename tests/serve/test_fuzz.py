"""Hundreds of malformed requests, drawn with a seed, after which the server still works."""

from __future__ import annotations

import http.client
import json
import random
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nemotron_core.wire import ENGINE_INPUTS, TEXT_INPUTS, Tensor
from nemotron_serve.model_server import ModelServer
from tests.serve.wire import messages_json, running, stream, text
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import WAIT, until

SEED = 20240614
OVER_HTTP = 400
OVER_GRPC = 400
REFUSALS = {400, 404, 405, 500, 501}
"""Triton itself answers 500 to JSON that it cannot parse."""
MODELS = ("ensemble", "tensorrt_llm_bls", "generate", "tensorrt_llm")
SIZES = {"BOOL": 1, "INT32": 4, "FP32": 4, "FP16": 2, "INT64": 8, "UINT64": 8, "STRING": 0}
RIGHT = {"text_input": "<extra_id_1>Go", "max_tokens": 2}
RIGHT_TOKENS = {"input_ids": 5, "input_lengths": 1, "request_output_len": 2}


def junk(rng: random.Random) -> Any:
    """Return a JSON value that few inputs accept."""
    return rng.choice(
        [
            *(None, True, -1, 0, 2**31, -(2**63), 2**64, 1e308, -0.5, "", "a\0b", "\ud800", "no"),
            *([], [[]], [1, "a"], {}, {"a": [{}]}, "x" * rng.randrange(5000), [0] * 3000),
        ]
    )


def body_of_json(rng: random.Random) -> bytes:
    """Return a valid body with a few invalid values, whose bytes are sometimes cut or changed."""
    names = [text_input.name for text_input in TEXT_INPUTS]
    fields: dict[str, Any] = dict(RIGHT)
    for _ in range(rng.randrange(1, 4)):
        unknown = "".join(rng.choices(string.printable, k=rng.randrange(12)))
        fields[rng.choice([*names, unknown])] = junk(rng)
    if rng.random() < 0.2:
        del fields[rng.choice(list(fields))]
    body = bytearray(json.dumps(fields).encode())
    for _ in range(rng.randrange(4) if rng.random() < 0.2 else 0):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(body[: rng.randrange(len(body) + 1)] if rng.random() < 0.1 else body)


def over_http(server: ModelServer, rng: random.Random) -> int:
    """Send an invalid request. Return its status, or 0 if the server closed the connection."""
    endpoints = server.endpoints
    verb = rng.choice(["generate"] * 4 + ["generate_stream"] * 4 + ["infer", "%ff"])
    path = f"/v2/models/{rng.choice([*MODELS * 9, 'none', '%00', 'x' * 2000])}/{verb}"
    method = rng.choice(["POST"] * 20 + ["GET", "PUT", "DELETE"])
    headers = {}
    if rng.random() < 0.1:
        headers["Inference-Header-Content-Length"] = rng.choice(["-1", "7", "9" * 30, "x"])
    if rng.random() < 0.1:
        headers["Content-Encoding"] = rng.choice(["gzip", "deflate", "br"])
    body = rng.choice([body_of_json] * 5 + [random_bytes])(rng)
    connection = http.client.HTTPConnection(endpoints.address, endpoints.http, timeout=WAIT)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.read()
    except (http.client.HTTPException, ConnectionError):
        return 0
    else:
        return response.status
    finally:
        connection.close()


def random_bytes(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(300))


def infer_request(model: str, rng: random.Random) -> service_pb2.ModelInferRequest:
    """Return a valid request with a few more inputs of wrong types, shapes, lengths and values."""
    engine = model == "tensorrt_llm"
    known: tuple[Tensor, ...] = ENGINE_INPUTS if engine else TEXT_INPUTS
    request = service_pb2.ModelInferRequest(model_name=model if rng.random() < 0.95 else "none\0")
    request.id = "".join(rng.choices(string.printable, k=rng.randrange(20)))
    right = RIGHT_TOKENS if engine else RIGHT
    tensors = [tensor for tensor in known if tensor.name in right]
    for tensor in [*tensors, *rng.choices(known, k=rng.randrange(1, 3))]:
        wrong = tensor.name not in right or rng.random() < 0.1
        dtype = rng.choice(list(SIZES)) if wrong and rng.random() < 0.15 else tensor.dtype
        shape = [1, 1]
        if wrong and rng.random() < 0.2:
            shape = rng.choices([-1, 0, 1, 2, 3, 2**40], k=rng.randrange(4))
        name = tensor.name if not wrong or rng.random() < 0.95 else "\u202e"
        datatype = "BYTES" if dtype == "STRING" else dtype
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        data = (
            element(right.get(tensor.name, 0)) if not wrong else rng.randbytes(SIZES[dtype] or 20)
        )
        if wrong and dtype == "STRING" and rng.random() < 0.8:
            data = (len(data) - 4).to_bytes(4, "little") + data[4:]
        if wrong and rng.random() < 0.1:
            data = data[:-1]
        request.raw_input_contents.append(data)
    return request


def element(value: object) -> bytes:
    """Return a value as the bytes of Triton's protocol."""
    if isinstance(value, str):
        return len(value.encode()).to_bytes(4, "little") + value.encode()
    assert isinstance(value, int)
    return value.to_bytes(4, "little")


def over_grpc(stub: Any, rng: random.Random) -> str:
    """Send an invalid request. Return how it ended: its status, or "refused" inside the stream."""
    model = rng.choice(MODELS)
    request = infer_request(model, rng)
    try:
        if model == "generate":
            stub.ModelInfer(request, timeout=WAIT)
            return "answered"
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for reply in stub.ModelStreamInfer(iter([request]), timeout=WAIT):
            if reply.error_message:
                return "refused"
            if reply.infer_response.parameters["triton_final_response"].bool_param:
                break
    except grpc.RpcError as error:
        return str(error.code())
    return "answered"


@pytest.fixture(scope="module")
def check_server(answers: list[ExactAnswer]) -> Callable[[ModelServer], None]:
    """Return a function that asserts that nothing runs and that answers are still correct."""

    def check(server: ModelServer) -> None:
        until(lambda: running(server) == 0)
        for exact in answers[11::90]:
            prompt = messages_json(exact.question.messages)
            for model in ("ensemble", "tensorrt_llm_bls"):
                responses = stream(server, model, messages=prompt, max_tokens=200, stream=True)
                assert text(responses) == exact.question.answer

    return check


def test_malformed_http_requests(
    server: ModelServer, check_server: Callable[[ModelServer], None]
) -> None:
    rng = random.Random(SEED)
    outcomes = Counter(over_http(server, rng) for _ in range(OVER_HTTP))
    assert server.triton.process.poll() is None
    assert set(outcomes) <= {0, 200, *REFUSALS}, outcomes
    assert outcomes[400] > OVER_HTTP / 8, (
        outcomes
    )  # by our models; most others fail Triton's own parser
    assert outcomes[200] < OVER_HTTP / 10, outcomes
    check_server(server)


def test_malformed_grpc_requests(
    server: ModelServer, check_server: Callable[[ModelServer], None]
) -> None:
    rng = random.Random(SEED)
    endpoints = server.endpoints
    with grpc.insecure_channel(f"{endpoints.address}:{endpoints.grpc}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        outcomes = Counter(over_grpc(stub, rng) for _ in range(OVER_GRPC))
    assert server.triton.process.poll() is None
    assert outcomes["refused"] > OVER_GRPC / 4, outcomes
    assert "StatusCode.DEADLINE_EXCEEDED" not in outcomes, outcomes
    check_server(server)
