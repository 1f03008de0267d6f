"""Answers leave the engine when they are stopped by id or their client disconnects."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from nemotron_build.profile import Profile
from nemotron_core.metrics import GENERATED_TOKENS_METRIC
from nemotron_serve.model_server import ModelServer
from tests.serve.wire import (
    ASK,
    ENDLESS,
    ENDLESS_TOKENS,
    MODELS,
    STOP,
    STOP_ATTEMPTS,
    Running,
    Sent,
    grpc_client,
    inputs,
    last,
    metric,
    running,
    stream,
    text,
)
from tests.waiting import WAIT, until

FLUSH_SECONDS = 0.5
"""Interval at which the engine sends its counts to Triton."""
STREAMED = {**dict.fromkeys(MODELS, ENDLESS), "tensorrt_llm": ENDLESS_TOKENS}


def stop(server: ModelServer, request_id: str) -> None:
    """Stop requests in the classic way. The answer to it is empty."""
    assert stream(server, "tensorrt_llm", request_id=request_id, **STOP) == []


@pytest.mark.parametrize("model", STREAMED)
def test_a_second_request_stops_the_first_by_its_id(model: str, server: ModelServer) -> None:
    for _ in range(STOP_ATTEMPTS):
        with Running(server, model, Sent("stop-me"), **STREAMED[model]) as request:
            request.begin()
            stop(server, "stop-me")
            came_too_late = request.ended.is_set()
            responses = request.end()
        if not came_too_late:
            break
    assert last(responses, "finish_reason") == "cancelled"
    assert last(responses, "num_output_tokens") < 4000


def test_clients_with_the_same_id_share_it(server: ModelServer) -> None:
    """Also on different models. Requests with another id, and without any, go on."""
    for _ in range(STOP_ATTEMPTS):
        with ExitStack() as stack:
            requests = [
                (
                    request_id,
                    stack.enter_context(Running(server, model, Sent(request_id), **fields)),
                )
                for model, fields in STREAMED.items()
                for request_id in ("mine", "mine", "other", "")
            ]
            for _, request in requests:
                request.begin()
            for request_id in ("mine", "nobody", ""):
                stop(server, request_id)
            responses = [request.end() for name, request in requests if name == "mine"]
            came_too_late = any(
                request.ended.is_set() for name, request in requests if name != "mine"
            )
        until(lambda: running(server) == 0)
        if not came_too_late:
            break
    reasons = [last(answer, "finish_reason") for answer in responses]
    assert reasons == ["cancelled"] * 2 * len(STREAMED)
    assert not came_too_late


def cancel_grpc(server: ModelServer, model: str) -> None:
    started = threading.Event()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: started.set())
        client.async_stream_infer(model, inputs(tritonclient.grpc, **ENDLESS))
        assert started.wait(WAIT)
        client.stop_stream(cancel_requests=True)


def hang_up_http(server: ModelServer, model: str) -> None:
    connection = http.client.HTTPConnection(server.endpoints.address, server.endpoints.http)
    connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(ENDLESS))
    response = connection.getresponse()
    assert response.read(20).startswith(b"data:")
    response.close()
    connection.close()


def refused_again_and_again(server: ModelServer, model: str) -> None:
    for _ in range(40):
        with pytest.raises(InferenceServerException, match="max_tokens is 0"):
            stream(server, model, text_input="Go", max_tokens=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("leave", [cancel_grpc, hang_up_http, refused_again_and_again])
def test_a_client_that_disconnects_frees_the_engine(
    leave: Callable[[ModelServer, str], None],
    model: str,
    engine_bf16: Path,
    cpu_profile: Profile,
) -> None:
    """Nobody sends a stop. Triton ends cleanly afterwards, so it has lost count of no request."""
    with ModelServer(engine_bf16, cpu_profile) as server_alone:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(leave, [server_alone] * 8, [model] * 8))
        until(lambda: running(server_alone) == 0)
        assert text(stream(server_alone, messages=ASK, max_tokens=200)).startswith("I am")
        time.sleep(2 * FLUSH_SECONDS)
        assert 0 < metric(server_alone, GENERATED_TOKENS_METRIC) < 8 * 4000 / 2
    assert server_alone.triton.process.returncode == -signal.SIGKILL  # it had not crashed
