"""Streams: how often pieces come, deadlines, and long prompts beside them."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from contextlib import ExitStack
from typing import Any

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from nemotron_serve.model_server import ModelServer
from tests.serve.wire import (
    ASK,
    ENDLESS,
    ENDLESS_TOKENS,
    MODELS,
    TEXT_MODELS,
    Running,
    Sent,
    grpc_client,
    infer,
    inputs,
    post,
    running,
    stream,
    text,
    whole,
)
from tests.waiting import until

SINGLE = {"chunk_tokens": 1}
LENGTH = 300
LIMIT = 200_000
"""Microseconds, far less than an endless answer takes."""
STREAMS = 20
STALL_SECONDS = 5.0
"""A machine that is only busy stalls for less; tokenizing ten megabytes took nine seconds."""


def sizes(responses: list[dict[str, Any]]) -> list[int]:
    """Return the number of tokens of each response but the last."""
    return [response["output_token_ids"].size for response in responses[:-1]]


@pytest.mark.parametrize("model", MODELS)
def test_single_tokens_only_for_who_asks(model: str, server: ModelServer) -> None:
    """The tiny model makes hundreds of tokens a second; 20 pieces a second carry them in groups.

    Tried again where a busy machine is slower than both.
    """
    request = ENDLESS | {"max_tokens": LENGTH}

    def are_single() -> bool:
        single = stream(server, model, sent=Sent(parameters=SINGLE), **request)
        grouped = stream(server, model, **request)
        assert text(single) == text(grouped)
        is_median_one = statistics.median(sizes(single) or [0]) == 1
        return is_median_one and len(single) > 2 * len(grouped)

    until(are_single)


@pytest.mark.parametrize("model", MODELS)
def test_single_tokens_over_http(model: str, server: ModelServer) -> None:
    path = f"/v2/models/{model}/generate_stream"
    request = ENDLESS | {"max_tokens": LENGTH}

    def count(parameters: dict[str, Any]) -> int:
        status, reply = post(server, path, request | parameters)
        assert status == 200
        return reply.count(b"data:")

    until(lambda: count(SINGLE) > 2 * count({}))


def test_single_tokens_of_the_tokens_model(server: ModelServer) -> None:
    request = ENDLESS_TOKENS | {"request_output_len": LENGTH}

    def are_single() -> bool:
        single = stream(server, "tensorrt_llm", sent=Sent(parameters=SINGLE), **request)
        grouped = stream(server, "tensorrt_llm", **request)
        is_median_one = statistics.median(r["sequence_length"].item() for r in single) == 1
        return is_median_one and len(single) > 2 * len(grouped)

    until(are_single)


@pytest.mark.parametrize("model", [*TEXT_MODELS, "tensorrt_llm"])
def test_tritons_own_timeout_over_grpc(model: str, server: ModelServer) -> None:
    fields = dict(ENDLESS_TOKENS if model == "tensorrt_llm" else ENDLESS)
    if model == "generate":
        del fields["stream"]
    with pytest.raises(InferenceServerException, match="deadline exceeded: "):
        if model == "generate":
            infer(server, model, Sent(timeout=LIMIT), **fields)
        else:
            stream(server, model, sent=Sent(timeout=LIMIT), **fields)
    until(lambda: running(server) == 0)


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_a_timeout_on_generate(model: str, server: ModelServer) -> None:
    body = {name: value for name, value in ENDLESS.items() if name != "stream"}
    path = f"/v2/models/{model}/generate"
    status, reply = post(server, path, body | {"timeout": LIMIT})
    assert status == 400  # whatever a model's code is
    assert "deadline exceeded: " in json.loads(reply)["error"]
    status, reply = post(server, path, {"messages": ASK, "max_tokens": 5, "timeout": 0})
    assert status == 200  # 0 means none


@pytest.mark.parametrize("model", MODELS)
def test_a_timeout_on_generate_stream(model: str, server: ModelServer) -> None:
    path = f"/v2/models/{model}/generate_stream"
    status, reply = post(server, path, ENDLESS | {"timeout": LIMIT})
    assert status == 200  # the answer had begun
    *pieces, error = [line for line in reply.splitlines() if line.startswith(b"data:")]
    assert pieces
    assert "deadline exceeded: " in json.loads(error[5:])["error"]


def test_who_calls_with_a_deadline_of_grpc_frees_the_engine(server: ModelServer) -> None:
    """It arrives as the client's cancellation."""
    fields = {name: value for name, value in ENDLESS.items() if name != "stream"}
    tensors = inputs(tritonclient.grpc, **fields)
    with (
        grpc_client(server) as client,
        pytest.raises(InferenceServerException, match="Deadline Exceeded"),
    ):
        client.infer("generate", tensors, client_timeout=LIMIT / 1e6)
    until(lambda: running(server) == 0)


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_a_prompt_of_megabytes_is_refused_at_once_and_holds_up_nobody(
    model: str, server: ModelServer
) -> None:
    """Tokenizing it would take many seconds, in which every stream would stand still."""
    prompt = "the quick brown fox " * 500_000
    with ExitStack() as stack:
        streams = [
            stack.enter_context(Running(server, MODELS[number % len(MODELS)], **ENDLESS))
            for number in range(STREAMS)
        ]
        for request in streams:
            request.begin()
        started = time.monotonic()
        with pytest.raises(InferenceServerException, match="10000000 characters are more than"):
            whole(server, model, text_input=prompt, max_tokens=5)
        assert time.monotonic() - started < STALL_SECONDS
        counts = [len(request.responses) for request in streams]
        until(
            lambda: all(
                len(request.responses) > count or request.ended.is_set()
                for request, count in zip(streams, counts, strict=True)
            )
        )
        for request in streams:
            assert request.error is None
            gaps = [after - before for before, after in itertools.pairwise(request.times)]
            assert max(gaps) < STALL_SECONDS
    until(lambda: running(server) == 0)


def test_a_long_prompt_is_tokenized_beside_the_streams(server: ModelServer) -> None:
    """Only its tokens show that it does not fit: it might by its characters."""
    hello = server.engine.hello
    prompt = "ab " * (hello.max_seq_len * 2)
    with Running(server, "tensorrt_llm_bls", **ENDLESS) as request:
        request.begin()
        with pytest.raises(InferenceServerException, match="are more than the 4096 this model"):
            whole(server, "tensorrt_llm_bls", text_input=prompt, max_tokens=5)
        before = len(request.responses)
        until(lambda: len(request.responses) > before or request.ended.is_set())
        assert request.error is None
