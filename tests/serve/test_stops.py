"""Answers leave the engine when they are stopped by id or their client disconnects."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from nemotron_build.profile import Profile
from nemotron_core.metrics import GENERATED_TOKENS_METRIC, RUNNING_METRIC
from nemotron_serve.server import TritonServer
from tests.serve.wire import (
    ASK,
    ENDLESS,
    MODELS,
    STOP,
    STOP_ATTEMPTS,
    grpc_client,
    inputs,
    metric,
    stream,
    text,
)
from tests.waiting import WAIT, until

FLUSH_SECONDS = 0.5
"""Interval at which the engine sends its counts to Triton."""


def stopped_answer(server: TritonServer) -> tuple[str, int, bool]:
    """Stop an answer as it begins.

    Return its finish reason, its number of responses, and whether it ended before the stop came.
    """
    started, ended = threading.Event(), threading.Event()
    responses: queue.Queue[Any] = queue.Queue()

    def collect(result: Any, error: Any) -> None:
        reason = error or result.as_numpy("finish_reason").ravel()[0].decode()
        responses.put(reason)
        started.set()
        if reason:
            ended.set()

    with grpc_client(server) as client:
        client.start_stream(collect)
        fields = inputs(tritonclient.grpc, **ENDLESS)
        client.async_stream_infer("ensemble", fields, request_id="stop-me")
        assert started.wait(WAIT)
        assert stream(server, "tensorrt_llm", request_id="stop-me", **STOP) == []
        came_too_late = ended.is_set()
        count = 1
        while not (reason := responses.get(timeout=WAIT)):
            count += 1
    return reason, count, came_too_late


def test_a_second_request_stops_the_first_by_its_id(server: TritonServer) -> None:
    for _ in range(STOP_ATTEMPTS):
        reason, count, came_too_late = stopped_answer(server)
        if not came_too_late:
            break
    assert reason == "cancelled"
    assert count < 4000


def cancel_grpc(server: TritonServer, model: str) -> None:
    started = threading.Event()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: started.set())
        client.async_stream_infer(model, inputs(tritonclient.grpc, **ENDLESS))
        assert started.wait(WAIT)
        client.stop_stream(cancel_requests=True)


def hang_up_http(server: TritonServer, model: str) -> None:
    connection = http.client.HTTPConnection(server.endpoints.address, server.endpoints.http)
    connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(ENDLESS))
    response = connection.getresponse()
    assert response.read(20).startswith(b"data:")
    response.close()
    connection.close()


def refused_again_and_again(server: TritonServer, model: str) -> None:
    for _ in range(40):
        with pytest.raises(InferenceServerException, match="max_tokens is 0"):
            stream(server, model, text_input="Go", max_tokens=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("leave", [cancel_grpc, hang_up_http, refused_again_and_again])
def test_a_client_that_disconnects_frees_the_engine(
    leave: Callable[[TritonServer, str], None],
    model: str,
    engine_bf16: Path,
    cpu_profile: Profile,
) -> None:
    """Nobody sends a stop. Triton ends cleanly afterwards, so it has lost count of no request."""
    with TritonServer(engine_bf16, cpu_profile) as server_alone:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(leave, [server_alone] * 8, [model] * 8))
        until(lambda: metric(server_alone, RUNNING_METRIC) == 0)
        assert text(stream(server_alone, messages=ASK, max_tokens=200)).startswith("I am")
        time.sleep(2 * FLUSH_SECONDS)
        assert 0 < metric(server_alone, GENERATED_TOKENS_METRIC) < 8 * 4000 / 2
    assert server_alone.process.returncode == 0
