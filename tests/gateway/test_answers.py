"""What a client gets for each thing that can happen at the engine, with a scripted engine."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from nemotron_core.errors import ErrorKind
from nemotron_core.generation import Piece
from nemotron_core.openai.answer import AnswerOptions, ChatAnswer, CompletionAnswer
from nemotron_core.openai.errors import HttpError
from nemotron_core.openai.responses import ResponsesRequest
from nemotron_core.openai.reward import RewardRequest
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_core.text import Tokenizer
from nemotron_gateway.nemo_schema import GenerateRequest
from nemotron_gateway.tokens_api import DetokenizeRequest, TokenizeRequest
from tests.gateway.asgi import Connection, ScriptedEngine, ask, complete, gateway, scope
from tests.gateway.process import MODEL

STATUSES = {
    ErrorKind.REFUSED: 400,
    ErrorKind.OVERLOADED: 429,
    ErrorKind.SHUTTING_DOWN: 503,
    ErrorKind.UNREACHABLE: 503,
    ErrorKind.TIMED_OUT: 504,
    ErrorKind.FAILED: 500,
    ErrorKind.INTERRUPTED: 499,
}
RETRY_LATER = {ErrorKind.OVERLOADED, ErrorKind.SHUTTING_DOWN, ErrorKind.UNREACHABLE}
FIRST, LAST = Piece("a", (1,), "", "", 3, 1), Piece("b", (2,), "length", "", 3, 2)


@pytest.mark.parametrize("kind", list(ErrorKind))
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_piece(
    kind: ErrorKind, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own status, and `Retry-After: 1` on exactly the kinds that a later attempt may change."""
    ScriptedEngine([HttpError.of_kind(kind, "it failed")]).install(monkeypatch)
    answer = complete(stream=stream)
    assert (answer.status, answer.message) == (STATUSES[kind], "it failed")
    assert answer.headers.get("retry-after") == ("1" if kind in RETRY_LATER else None)
    assert len(answer.headers["x-request-id"]) == 32


def test_retry_after_on_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tokenizer(*_arguments: object) -> None:
        raise HttpError.of_kind(ErrorKind.OVERLOADED, "it is full")

    monkeypatch.setattr("nemotron_gateway.backend.Backend.tokenizer", tokenizer)
    answer = ask({"sentences": ["Go"]}, "/generate", "PUT")
    assert (answer.status, answer.json) == (429, "it is full")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(("size", "is_beside"), [(1, False), (1 << 20, True)])
def test_a_large_body_is_read_beside_the_others(
    size: int, is_beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys are checked there too: a body of some megabytes may have a million of them."""
    threads = []
    check = CompletionRequest.check

    def record(body: CompletionRequest) -> None:
        threads.append(threading.current_thread())
        check(body)

    monkeypatch.setattr(CompletionRequest, "check", record)
    ScriptedEngine([LAST]).install(monkeypatch)
    assert complete(user="a" * size).status == 200
    assert [thread is not threading.main_thread() for thread in threads] == [is_beside]


def test_long_sentences_are_tokenized_beside_the_others(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    encode = Tokenizer.encode

    def record(self: Tokenizer, text: str) -> list[int]:
        threads.append(threading.current_thread())
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", record)
    ScriptedEngine(tokenizer=tokenizer).install(monkeypatch)
    answer = ask({"sentences": ["The quick brown fox. " * 10_000]}, "/generate", "PUT")
    assert answer.status == 400
    assert "more than the 4096 this model holds" in answer.json
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (ChatRequest, {"messages": [1] * 1000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 1000}]}),
        (CompletionRequest, {"prompt": [[1], *["a"] * 1000]}),
        (CompletionRequest, {"prompt": "a", "stop": [1] * 1000}),
        (CompletionRequest, {"prompt": "a", "stop_token_ids": ["a"] * 1000}),
        (CompletionRequest, {"prompt": "a", "bad_words": [1] * 1000}),
        (CompletionRequest, {"prompt": "a", "guided_choice": [1] * 1000}),
        (CompletionRequest, {"prompt": "a", "structured_outputs": {"choice": [1] * 1000}}),
        (CompletionRequest, {"prompt": "a", "logit_bias": {str(i): "a" for i in range(1000)}}),
        (ResponsesRequest, {"input": [1] * 1000}),
        (RewardRequest, {"messages": [1] * 1000}),
        (TokenizeRequest, {"messages": [1] * 1000}),
        (DetokenizeRequest, {"tokens": ["a"] * 1000}),
        (GenerateRequest, {"sentences": [1] * 1000}),
        (GenerateRequest, {"sentences": ["a"], "end_strings": [1] * 1000}),
    ],
)
def test_a_list_is_refused_at_its_first_wrong_item(schema: type[BaseModel], body: Any) -> None:
    """An error for each of a million items would take seconds, in which nobody else is served."""
    with pytest.raises(ValidationError) as raised:
        schema.model_validate(body)
    assert raised.value.error_count() <= 4  # one for each type that the key may have


@pytest.mark.parametrize(
    ("body", "path", "method", "status"),
    [
        ({"model": MODEL}, "/v1/completions", "POST", 400),
        ({"input": "a"}, "/v1/embeddings", "POST", 404),
        ({"model": "other", "prompt": ""}, "/v1/completions", "POST", 404),
        ({}, "/v1/completions", "GET", 405),
        ({}, "/health/live", "GET", 200),
    ],
)
def test_no_retry_after_where_a_later_attempt_changes_nothing(
    body: Any, path: str, method: str, status: int
) -> None:
    answer = ask(body, path, method)
    assert answer.status == status
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (HttpError.of_kind(ErrorKind.FAILED, "it broke"), "it broke"),
        (RuntimeError("secret"), "the gateway failed"),
    ],
)
def test_a_failure_inside_a_stream_is_its_last_event(
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ScriptedEngine([FIRST, error]).install(monkeypatch)
    answer = complete(stream=True)
    assert answer.status == 200
    first, last = answer.events()
    assert first["choices"][0]["text"] == "a"
    assert message in last["error"]["message"]
    assert "secret" not in answer.text
    assert ("RuntimeError: secret" in caplog.text) == isinstance(error, RuntimeError)


def test_an_unexpected_failure_is_logged_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ScriptedEngine([RuntimeError("secret")]).install(monkeypatch)
    answer = complete()
    request_id = answer.headers["x-request-id"]
    assert answer.status == 500
    assert request_id in answer.message
    assert "secret" not in answer.text
    assert f"request {request_id} failed" in caplog.text
    assert "RuntimeError: secret" in caplog.text


@pytest.mark.parametrize(("stream", "begun"), [(False, False), (True, False), (True, True)])
def test_a_disconnect_ends_the_generation_at_once(
    stream: bool,
    begun: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also while the engine is silent, where nothing that is sent could fail."""

    async def hang_up() -> ScriptedEngine:
        silent = asyncio.Event()
        engine = ScriptedEngine([FIRST, silent] if begun else [silent])
        engine.install(monkeypatch)
        body = {"model": MODEL, "prompt": "Go", "stream": stream}
        connection = Connection(json.dumps(body).encode())
        request = asyncio.ensure_future(
            gateway()(scope("POST", "/v1/completions"), connection.receive, connection.send)
        )
        await silent.wait()
        assert engine.running == 1
        connection.disconnect.set()
        await asyncio.wait_for(request, 10)
        return engine

    engine = asyncio.run(hang_up())
    assert engine.running == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["status"] == 499


def test_a_stream_with_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine([FIRST, LAST]).install(monkeypatch)
    first, second, finish, usage = complete(
        stream=True, stream_options={"include_usage": True}
    ).events()
    assert [c["choices"][0]["text"] for c in (first, second, finish)] == ["a", "b", ""]
    assert finish["choices"][0]["finish_reason"] == "length"
    assert first["usage"] is second["usage"] is finish["usage"] is None
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_lone_surrogate_does_not_break_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedEngine([Piece("a\ud800", (1,)), Piece("\udfff", (2,), "length")]).install(monkeypatch)
    texts = [event["choices"][0]["text"] for event in complete(stream=True).events()]
    assert texts == ["a?", "?", ""]
    assert complete().json["choices"][0]["text"] == "a??"


@pytest.mark.parametrize("builder", [ChatAnswer, CompletionAnswer])
def test_a_whole_answer_without_a_tokenizer(builder: Any) -> None:
    """As programs that are no gateway build it."""
    pieces = {1: Piece("b", (), "stop", "", 3, 2, 1), 0: Piece("a", (), "length", "", 3, 1, 0)}
    content = builder(MODEL, AnswerOptions(request_id="7"), num_answers=2).whole(pieces)
    assert content["id"].endswith("-7")
    assert [choice["index"] for choice in content["choices"]] == [0, 1]
    assert [choice["finish_reason"] for choice in content["choices"]] == ["length", "stop"]
    texts = [choice.get("text") or choice["message"]["content"] for choice in content["choices"]]
    assert texts == ["a", "b"]
    assert content["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
