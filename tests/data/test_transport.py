"""What each transport makes of a server's answers and failures."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_data.options import MODEL
from nemotron_data.rows.row import CHAT, COMPLETION, Row
from nemotron_data.transport.factory import open_transport, scheme_of
from nemotron_data.transport.protocol import API_KEYS, Answer, Failure, Transport, api_key
from nemotron_data.transport.triton import parse_request
from tests.standins.chat_server import ChatServer, Reply, refused, said

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


def transport_to(url: str, timeout: float = 60) -> Transport:
    return open_transport(url, timeout=timeout, key_variables=("TEST_KEY",))


def send(url: str, timeout: float = 60) -> Answer:
    async def main() -> Answer:
        transport = transport_to(url, timeout)
        try:
            return await transport.send(Row(1, "a", CHAT, BODY), BODY)
        finally:
            await transport.aclose()

    return asyncio.run(main())


def test_the_key_is_of_the_first_variable_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in API_KEYS:
        monkeypatch.delenv(name, raising=False)
    assert api_key() is None
    monkeypatch.setenv(API_KEYS[1], "second")
    monkeypatch.setenv(API_KEYS[0], "")
    assert api_key() == "second"
    monkeypatch.setenv(API_KEYS[0], "first")
    assert api_key() == "first"
    assert api_key(API_KEYS[1:]) == "second"


def failure_of(url: str, timeout: float = 60) -> Failure:
    with pytest.raises(Failure) as raised:
        send(url, timeout)
    return raised.value


@pytest.fixture
def closed_port() -> Iterator[int]:
    with closing(socket.socket()) as unused:  # bound, but it does not listen
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refused(400), ErrorKind.REFUSED),
        (refused(404), ErrorKind.REFUSED),
        (refused(408), ErrorKind.FAILED),
        (refused(429), ErrorKind.OVERLOADED),
        (refused(500), ErrorKind.FAILED),
        (refused(502), ErrorKind.FAILED),
        (refused(503), ErrorKind.OVERLOADED),
        ((200, {"choices": {}}, {}), ErrorKind.FAILED),
        ((200, {}, {}), ErrorKind.FAILED),
    ],
)
def test_http_statuses_as_kinds(reply: Reply, kind: ErrorKind) -> None:
    with ChatServer(lambda _body, _inside: reply) as server:
        failure = failure_of(server.url)
    assert (failure.kind, failure.status) == (kind, reply[0])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2.5", 2.5), ("0", 0), ("1000", 60), ("-1", None), ("Thu, 01 Jan 2026 00:00:00 GMT", None)],
)
def test_retry_after(header: str, seconds: float | None) -> None:
    with ChatServer(lambda _body, _inside: refused(429, retry_after=header)) as server:
        assert failure_of(server.url).retry_after == seconds


def test_an_answer_and_its_token_counts() -> None:
    with ChatServer(lambda _body, _inside: said("Hi", tokens=3)) as server:
        answer = send(server.url + "/v1/")
    assert (answer.status, answer.request_id) == (200, "x")
    assert answer.token_count("completion_tokens") == 3
    assert Answer(200, "x", b'{"choices": []}').token_count("completion_tokens") == 0
    assert Answer(200, "x", b'{"choices": [], "usage": {"n": null}}').token_count("n") == 0


def test_an_answer_that_takes_too_long_is_a_timeout() -> None:
    release = threading.Event()

    def answer(_body: dict[str, Any], _inside: int) -> Reply:
        release.wait(60)
        return said("late")

    with ChatServer(answer) as server:
        failure = failure_of(server.url, timeout=0.1)
        release.set()
    assert (failure.kind, failure.status) == (ErrorKind.TIMED_OUT, 504)


@pytest.mark.parametrize(("scheme", "status"), [("http", None), ("grpc", 503)])
def test_no_server_is_unreachable(scheme: str, status: int | None, closed_port: int) -> None:
    url = f"{scheme}://127.0.0.1:{closed_port}"
    failure = failure_of(url)
    assert (failure.kind, failure.status) == (ErrorKind.UNREACHABLE, status)

    async def describe() -> None:
        transport = transport_to(url)
        try:
            await transport.describe()
        finally:
            await transport.aclose()

    with pytest.raises(Failure) as raised:
        asyncio.run(describe())
    assert raised.value.kind is ErrorKind.UNREACHABLE


def test_a_server_without_the_endpoint_stops_the_run() -> None:
    with (
        ChatServer(lambda _body, _inside: (404, {}, {})) as server,
        pytest.raises(NemotronError, match="there is no /v1/chat/completions"),
    ):
        send(server.url)


@pytest.mark.parametrize(
    "url", ["localhost:1424", "grpc://localhost", "http://:80", "http://a:b", "ftp://a:1"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(NemotronError, match="not the URL of a server"):
        scheme_of(url)


@pytest.mark.parametrize(
    ("endpoint", "change", "message"),
    [
        (CHAT, {"model": "other"}, "there is no model 'other'"),
        (CHAT, {"messages": []}, "messages: "),
        (CHAT, {"logprobs": True}, "logprobs: ask the gateway"),
        (CHAT, {"timeout": 5}, "timeout: ask the gateway"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs needs logprobs"),
        (COMPLETION, {"prompt": ["a", "b"]}, "several prompts"),
        (COMPLETION, {"prompt": "a", "echo": True}, "echo"),
    ],
)
def test_what_triton_cannot_do_is_refused(
    endpoint: str, change: dict[str, Any], message: str
) -> None:
    body = (BODY if endpoint == CHAT else {"model": MODEL}) | change
    with pytest.raises(Failure, match=message) as raised:
        parse_request(Row(1, "a", endpoint, body), body)
    assert (raised.value.kind, raised.value.status) == (ErrorKind.REFUSED, 400)


def test_the_length_of_an_answer_has_a_default() -> None:
    for change, max_tokens in [({}, 1024), ({"max_tokens": 3}, 3)]:
        body = {"model": MODEL, "prompt": "Hello", **change}
        prompt, generation, _ = parse_request(Row(1, "a", COMPLETION, body), body)
        assert (prompt, generation.max_tokens) == ("Hello", max_tokens)


def test_a_row_may_name_the_servers_own_model() -> None:
    small = "nemotron-mini-4b-instruct"
    for name in (small, "nvidia/Nemotron-Mini-4B-Instruct"):
        body = BODY | {"model": name}
        messages, _, _ = parse_request(Row(1, "a", CHAT, body), body, small)
        assert messages == BODY["messages"]
    with pytest.raises(Failure, match=f"no model '{MODEL}', only '{small}'"):
        parse_request(Row(1, "a", CHAT, BODY), BODY, small)
