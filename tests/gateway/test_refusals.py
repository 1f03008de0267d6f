"""The answers to wrong requests, in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.gateway.process import MODEL, Running


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"model": "other"}, "model", "there is no model 'other'"),
        ({"temperature": 3}, "temperature", "temperature: "),
        ({"temperature": "1"}, "temperature", "temperature: "),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: "),
        ({"max_tokens": 5000}, None, "maximum context length is 4096 tokens"),
        ({"n": 65}, "n", "at most 64 answers"),
        ({"messages": []}, "messages", "messages: "),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role", "role: "),
        ({"tools": [{"type": "function"}]}, "tools", "tools: "),
        ({"logit_bias": {"5": 101}}, "logit_bias", "outside of -100 to 100"),
        ({"logit_bias": {"five": 1}}, "logit_bias", "'five' is no token id"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "is no token id"),
        ({"logit_bias": {"5": True}}, "logit_bias", "the bias True is no number"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"stop": ["a"] * 65}, "stop", "at most 64 stop strings"),
        ({"stop": "a" * 1025}, "stop", "at most 1024 characters"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema belongs"),
    ],
)
def test_a_wrong_chat(gateway: Running, more: Any, param: str | None, message: str) -> None:
    for stream in (False, True):
        answer = gateway.chat("Hello", **({"stream": stream} if stream else {}) | more)
        assert answer.status == (404 if "model" in more else 400), answer.text
        assert message in answer.message
        assert answer.json["error"]["param"] == param
        assert answer.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompt": []}, "there is no prompt"),
        ({"prompt": ["a"] * 129}, "at most 128 prompts"),
        ({"prompt": [1, "a"]}, "prompt.0: "),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": [10**6]}, "token id 1000000 is outside the vocabulary"),
        ({"prompt": "a", "suffix": "b"}, "suffix: "),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 1, "temperature": 0}, "only for prompts and one new token"),
        ({"prompt": "a", "logprobs": 21}, "logprobs: "),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: 0 needs"),
        ({"prompt": "a\0b"}, "NUL"),
    ],
)
def test_a_wrong_completion(gateway: Running, more: Any, message: str) -> None:
    answer = gateway.ask("POST", "/v1/completions", {"model": MODEL} | more)
    assert answer.status == 400
    assert message in answer.message


def test_errors_through_the_library(client: openai.OpenAI) -> None:
    too_long: Any = {"model": MODEL, "prompt": "a", "max_tokens": 5000}
    # LangChain and litellm look for this sentence.
    with pytest.raises(
        openai.BadRequestError, match="maximum context length is 4096 tokens"
    ) as error:
        client.completions.create(**too_long)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(stream=True, **too_long)
    prompt = "word " * 9000
    messages: Any = [{"role": "user", "content": prompt}]
    for ask in (
        lambda: client.completions.create(model=MODEL, prompt=prompt),
        lambda: client.chat.completions.create(model=MODEL, messages=messages, stream=True),
        lambda: client.responses.create(model=MODEL, input=prompt),
    ):
        with pytest.raises(openai.BadRequestError, match="maximum context length is 4096") as error:
            ask()
        assert error.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"{", "application/json", 400, "the body is not JSON"),
        (b"\xff\xfe", "application/json", 400, "the body is not JSON"),
        (b"[" * 100_000, "application/json", 400, "the body is not JSON"),
        (b'{"temperature": NaN}', "application/json", 400, "the body is not JSON"),
        (b'{"prompt": "\\ud800"}', "application/json", 400, "half of a surrogate pair"),
        (b'{"prompt": "\\ud83d\\ude00",}', "application/json", 400, "trailing comma"),
        (b"[]", "application/json", 400, "body: "),
        (b"{}", "text/plain", 415, "Content-Type: application/json"),
        (b" " * ((8 << 20) + 1), "application/json", 413, "more than 8388608 bytes"),
    ],
)
def test_a_body_that_is_not_json(
    gateway: Running, body: bytes, kind: str, status: int, message: str
) -> None:
    answer = gateway.ask("POST", "/v1/chat/completions", body, {"Content-Type": kind})
    assert answer.status == status
    assert message in answer.message


def test_a_chunked_body_has_the_same_bound(gateway: Running) -> None:
    connection = gateway.connect()
    chunks = (b" " * (1 << 20) for _ in range(9))
    headers = {"Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/completions", chunks, headers, encode_chunked=True)
        status = connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        status = 413  # the gateway closed the connection before the whole body was sent
    finally:
        connection.close()
    assert status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("POST", "/generate", 405)],
)
def test_no_such_route(gateway: Running, method: str, path: str, status: int) -> None:
    answer = gateway.ask(method, path)
    assert answer.status == status
    assert path in answer.message
