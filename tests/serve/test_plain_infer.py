"""The model `generate`: one response over plain infer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from nemotron_serve.model_server import ModelServer
from tests.serve.wire import (
    ASK,
    STOP,
    STOP_ATTEMPTS,
    grpc_client,
    inputs,
    messages_json,
    post,
    running,
    stream,
)
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import WAIT, until


def test_plain_infer_over_grpc_and_http(server: ModelServer, answers: list[ExactAnswer]) -> None:
    exact = answers[0]
    fields = {"messages": messages_json(exact.question.messages), "max_tokens": 200}
    with grpc_client(server) as client:
        result = client.infer("generate", inputs(tritonclient.grpc, **fields))
        assert result.as_numpy("text_output").ravel()[0].decode() == exact.question.answer
        with pytest.raises(InferenceServerException, match="decoupled"):
            client.infer("ensemble", inputs(tritonclient.grpc, **fields))
        bad = inputs(tritonclient.grpc, messages="[]", max_tokens=5)
        with pytest.raises(InferenceServerException, match="messages must be a non-empty list"):
            client.infer("generate", bad)
    endpoints = server.endpoints
    with tritonclient.http.InferenceServerClient(f"{endpoints.address}:{endpoints.http}") as client:
        result = client.infer("generate", inputs(tritonclient.http, **fields))
        assert result.as_numpy("text_output").ravel()[0].decode() == exact.question.answer
        assert result.as_numpy("output_token_ids").ravel().tolist() == exact.token_ids


def test_plain_infer_answers_many_at_once(server: ModelServer, answers: list[ExactAnswer]) -> None:
    def ask(exact: ExactAnswer) -> str:
        body = {"messages": messages_json(exact.question.messages), "max_tokens": 200}
        status, reply = post(server, "/v2/models/generate/generate", body)
        assert status == 200
        return str(json.loads(reply)["text_output"])

    chosen = answers[5:37]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, chosen)) == [exact.question.answer for exact in chosen]


def test_plain_infer_does_not_wait_for_a_longer_one(server: ModelServer) -> None:
    long = {"text_input": "<extra_id_1>Go", "end_id": 0, "max_tokens": 4000, "id": "long"}
    path = "/v2/models/generate/generate"
    with ThreadPoolExecutor(1) as pool:
        for _ in range(STOP_ATTEMPTS):
            waiting = pool.submit(post, server, path, long)
            until(lambda: running(server) >= 1)
            status, _reply = post(server, path, {"messages": ASK, "max_tokens": 200})
            assert status == 200
            assert not waiting.done()
            stream(server, "tensorrt_llm", request_id="long", **STOP)
            came_too_late = waiting.done()
            status, reply = waiting.result(WAIT)
            assert status == 200
            if not came_too_late:
                break
    assert json.loads(reply)["finish_reason"] == "cancelled"


def test_plain_infer_cannot_stream(server: ModelServer) -> None:
    body = {"messages": ASK, "max_tokens": 5, "stream": True}
    status, reply = post(server, "/v2/models/generate/generate", body)
    assert status == 400
    assert "send the request to the model ensemble" in json.loads(reply)["error"]
