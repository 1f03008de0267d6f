"""Requests and responses on the wire, and the timeout for the next piece."""

from __future__ import annotations

import dataclasses
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from nemotron_client import (
    Generation,
    Limits,
    RequestOptions,
    RequestRefused,
    ServerFailed,
    Timeouts,
    Tls,
)
from nemotron_client.address import Address, parse_url
from nemotron_client.async_http_wire import request_body
from nemotron_client.channel import Connection
from nemotron_client.exchange import Exchange, PieceTimeout
from nemotron_client.grpc_calls import GrpcCalls
from nemotron_client.request import generation_request, stop_request
from nemotron_client.response import read_outputs
from nemotron_core.wire import TEXT_INPUTS

CONNECTION = Connection("url", Address("127.0.0.1:9"), Timeouts(), Limits(), Tls(), {})
FIELDS = [field.name for field in dataclasses.fields(Generation)]
SEQUENCES: dict[str, Any] = {
    "stop_words": ["a", "bc"],
    "stop_token_ids": [5, 7],
    "bad_words": ("a", "bc"),
    "embedding_bias_words": ["a", "bc"],
    "embedding_bias_weights": (0.5, 1.0),
    "bias_token_ids": [5, 7],
    "bias_values": (0.5, 1.0),
}


def inputs_of(generation: Generation) -> dict[str, tuple[str, list[int]]]:
    """Return the datatype and shape of each input of a request."""
    request = generation_request("ensemble", "id", "Hello", generation, stream=True)
    assert len(request.inputs) == len(request.raw_input_contents)
    return {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in request.inputs}


def test_every_sequence_field_is_covered() -> None:
    fields = dataclasses.fields(Generation)
    assert [field.name for field in fields if field.default == ()] == list(SEQUENCES)


@pytest.mark.parametrize("field", SEQUENCES)
@pytest.mark.parametrize("empty", [[], ()])
def test_an_empty_sequence_is_left_out(field: str, empty: Any) -> None:
    assert inputs_of(Generation(**{field: empty})) == inputs_of(Generation())


@pytest.mark.parametrize("field", FIELDS)
def test_every_setting_is_an_input_of_the_text_model(field: str) -> None:
    datatypes = {tensor.name: tensor.datatype for tensor in TEXT_INPUTS}
    value = SEQUENCES.get(field, 1)
    length = len(SEQUENCES.get(field, [1]))
    assert inputs_of(Generation(**{field: value}))[field] == (datatypes[field], [1, length])


@pytest.mark.parametrize(
    ("settings", "top_p"),
    [
        ({}, None),
        ({"temperature": 0.0}, None),
        ({"temperature": 0.5}, b"\0\0\x80?"),  # 1.0
        ({"temperature": 0.5, "top_p": 0.0}, b"\0\0\0\0"),
        ({"top_p": 0.5}, b"\0\0\0?"),
    ],
)
def test_a_temperature_comes_with_top_p(settings: dict[str, float], top_p: bytes | None) -> None:
    """On Triton's wire a temperature alone is greedy."""
    request = generation_request("ensemble", "id", "Hello", Generation(**settings), stream=True)
    names = [tensor.name for tensor in request.inputs]
    assert (dict(zip(names, request.raw_input_contents, strict=True)).get("top_p")) == top_p


@pytest.mark.parametrize(
    ("prompt", "name", "raw"),
    [
        ("Hé", "text_input", b"\x03\0\0\0H\xc3\xa9"),
        ([1, 258], "input_token_ids", b"\x01\0\0\0\x02\x01\0\0"),
        ([{"role": "user"}], "messages", b'\x12\0\0\0[{"role": "user"}]'),
    ],
)
def test_a_prompt_is_text_tokens_or_messages(prompt: Any, name: str, raw: bytes) -> None:
    request = generation_request("ensemble", "id", prompt, Generation(), stream=False)
    (index,) = (i for i, tensor in enumerate(request.inputs) if tensor.name == name)
    assert request.raw_input_contents[index] == raw


@pytest.mark.parametrize(
    ("prompt", "generation", "message"),
    [
        ([], Generation(), "the prompt is empty"),
        ([{"role": object()}], Generation(), "messages: "),
        ("x", Generation(seed=2**64), "seed is no UINT64"),
        ("\ud800", Generation(), "surrogates"),
    ],
)
def test_what_does_not_fit_on_the_wire_is_refused(
    prompt: Any, generation: Generation, message: str
) -> None:
    with pytest.raises(RequestRefused, match=message):
        request = Exchange("ensemble", prompt, generation, RequestOptions(), stream=True)
        GrpcCalls(grpc, CONNECTION).generate(request)
    with pytest.raises(RequestRefused, match=message):
        request_body(request)


def test_a_stop_request_names_the_running_request() -> None:
    request = stop_request("tensorrt_llm", "running")
    assert (request.model_name, request.id) == ("tensorrt_llm", "running")
    names = [tensor.name for tensor in request.inputs]
    assert request.raw_input_contents[names.index("stop")] == b"\x01"


def test_a_broken_response_is_an_error_of_the_server() -> None:
    response = service_pb2.ModelInferResponse(model_name="ensemble")
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    for raw in (b"\x01\0\0", b"\x02\0\0\0a", b"\x01\0\0\0\xff"):
        response.raw_output_contents[:] = [raw]
        with pytest.raises(ValueError, match="ensemble sent a broken response"):
            read_outputs(response)
    response.raw_output_contents.append(b"")
    with pytest.raises(ValueError, match="ensemble sent a broken response"):
        read_outputs(response)
    exchange = Exchange("ensemble", "Hello", Generation(), RequestOptions(), stream=True)
    with pytest.raises(ServerFailed, match="does not answer with 'text_output'"):
        exchange.read({})
    with pytest.raises(ServerFailed, match="the stream ended before the answer did"):
        exchange.end()


def test_the_piece_timeout_runs_only_while_a_piece_is_awaited() -> None:
    timeout = PieceTimeout(Timeouts(first_token=5, between_tokens=2))
    assert not timeout.is_over(1e9)
    timeout.start(100)
    assert not timeout.is_over(104.9)
    assert timeout.message == ""
    assert timeout.is_over(105.0)
    assert timeout.message == "no token in 5 seconds"
    timeout.stop()
    assert not timeout.is_over(1e9)
    timeout.start(100)
    assert timeout.is_over(102.0)
    assert timeout.message == "no further token in 2 seconds"


@pytest.mark.parametrize(
    ("timeouts", "is_endless"),
    [
        (Timeouts(total=1), True),
        (Timeouts(first_token=1), False),
        (Timeouts(between_tokens=1), False),
    ],
)
def test_only_timeouts_of_pieces_need_watching(timeouts: Timeouts, is_endless: bool) -> None:
    assert PieceTimeout(timeouts).is_endless is is_endless


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("127.0.0.1:8001", Address("127.0.0.1:8001")),
        ("triton", Address("triton:8001")),
        ("grpc://triton:9", Address("triton:9")),
        ("grpcs://triton", Address("triton:8001", is_secure=True)),
        ("http://triton", Address("triton:8000", is_http=True)),
        ("https://proxy:443/triton/", Address("proxy:443/triton", is_http=True, is_secure=True)),
        ("[::1]:8001", Address("[::1]:8001")),
        ("http://[::1]:8000", Address("[::1]:8000", is_http=True)),
        ("unix:/run/triton.sock", Address("unix:/run/triton.sock")),
        ("dns:///triton:8001", Address("dns:///triton:8001")),
        ("127.0.0.1:8001/", Address("127.0.0.1:8001")),
        ("HTTPS://triton:8", Address("triton:8", is_http=True, is_secure=True)),
    ],
)
def test_a_url_is_of_either_wire(url: str, address: Address) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "ftp://x:21",
        "http:/x:1",
        "http://",
        "",
        "http://a:b",
        "http://[::1",
        "http://a\u2100",
        "grpc://a/b",
        "a/b",
        "a:99999",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(RequestRefused, match="is no address of a server: use grpc://HOST:8001"):
        parse_url(url)


@pytest.mark.parametrize("url", ["http://me:pw@triton", "me:pw@triton:8001"])
def test_a_password_in_an_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(RequestRefused, match="leave it out and use api_key") as raised:
        parse_url(url)
    assert "pw" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RequestOptions(priority=-1), "priority is -1"),
        (RequestOptions(timeout=0), "timeout is 0"),
        (RequestOptions(timeout=float("nan")), "timeout is nan"),
        (RequestOptions(timeout=1e300), "timeout is"),
    ],
)
def test_options_out_of_range_are_refused(options: RequestOptions, message: str) -> None:
    request = Exchange("ensemble", "Hello", Generation(), options, stream=True)
    with pytest.raises(RequestRefused, match=message):
        GrpcCalls(grpc, CONNECTION).generate(request)
    with pytest.raises(RequestRefused, match=message):
        request_body(request)
