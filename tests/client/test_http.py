"""Timeouts, retries and failures of both clients over Triton's HTTP, and TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nemotron_client import (
    AsyncClient,
    Client,
    ClientError,
    ConnectionFailed,
    Generation,
    Limits,
    Piece,
    RequestOptions,
    RequestRefused,
    RequestTimeout,
    Retries,
    ServerFailed,
    ServerOverloaded,
    Timeouts,
    Tls,
)
from nemotron_core.errors import ErrorKind
from tests.client.clients import ONCE, make_certificate
from tests.gateway.scripted_triton import (
    CLOSE,
    HEARTBEAT,
    LAST,
    WORD,
    ScriptedTriton,
    Step,
    chunk,
    event,
    head,
    plain,
    stream,
)
from tests.waiting import WAIT

QUICK = Retries(attempts=3, first_delay=0.01)
ANSWER = stream(HEARTBEAT, WORD, WORD, LAST)
NO_OPTIONS = RequestOptions()
SHORT = Generation(max_tokens=2)


def error(text: str, status: int = 400) -> list[Step]:
    return stream(event(error=text), status=status)


def ask_with_each(
    *scripts: Sequence[Step], options: RequestOptions = NO_OPTIONS, **settings: Any
) -> tuple[list[list[Piece]], list[ScriptedTriton]]:
    """Return the pieces that each client reads, and the servers that they asked."""

    def ask(url: str) -> list[Piece]:
        with Client(url, retries=QUICK, **settings) as client:
            return list(client.generate("Hello", SHORT, options, stream=True))

    async def ask_all() -> None:
        async with ScriptedTriton(*scripts) as server:
            servers.append(server)
            async with AsyncClient(f"http://{server.address}", retries=QUICK, **settings) as client:
                pieces = client.generate("Hello", SHORT, options, stream=True)
                answers.append([piece async for piece in pieces])
        async with ScriptedTriton(*scripts) as server:
            servers.append(server)
            answers.append(await asyncio.to_thread(ask, f"http://{server.address}"))

    answers: list[list[Piece]] = []
    servers: list[ScriptedTriton] = []
    asyncio.run(asyncio.wait_for(ask_all(), WAIT))
    return answers, servers


def fail_with_each(*scripts: Sequence[Step], **settings: Any) -> tuple[list[ClientError], int]:
    """Return the exception of each client, and how often the server was asked."""

    def ask(url: str) -> ClientError:
        with Client(url, retries=QUICK, **settings) as client, pytest.raises(ClientError) as raised:
            list(client.generate("Hello", SHORT, stream=True))
        return raised.value

    async def ask_all() -> int:
        async with ScriptedTriton(*scripts) as server:
            url = f"http://{server.address}"
            async with AsyncClient(url, retries=QUICK, **settings) as client:
                with pytest.raises(ClientError) as raised:
                    async for _ in client.generate("Hello", SHORT, stream=True):
                        pass
                failures.append(raised.value)
                calls = len(server.requests)
            failures.append(await asyncio.to_thread(ask, url))
            assert len(server.requests) == 2 * calls
            return calls

    failures: list[ClientError] = []
    calls = asyncio.run(asyncio.wait_for(ask_all(), WAIT))
    return failures, calls


def test_options_pass_through() -> None:
    options = RequestOptions(request_id="mine", priority=3, timeout=1.5, headers={"x-trace": "abc"})
    settings = {"api_key": "secret", "headers": {"x-team": "us"}}
    answers, servers = ask_with_each(ANSWER, options=options, **settings)
    assert answers[0] == answers[1]
    assert "".join(piece.text for piece in answers[0]) == " word word"
    for server in servers:
        ((path, body),) = server.requests
        assert path == "/v2/models/ensemble/generate_stream"
        assert (body["id"], body["priority"], body["timeout"]) == ("mine", 3, 1_500_000)
        (headers,) = server.headers
        assert headers["authorization"] == "Bearer secret"
        assert (headers["x-team"], headers["x-trace"]) == ("us", "abc")


def test_the_line_separators_of_unicode_do_not_end_an_event() -> None:
    text = "a\u2028b\x85c"
    content = json.dumps({"text_output": text, "output_token_ids": 7}, ensure_ascii=False)
    answers, _ = ask_with_each(stream(f"data: {content}\n\n".encode(), LAST))
    assert [piece.text for piece in answers[0]] == [text, ""]


def test_the_classic_ensemble_says_less() -> None:
    said = stream(event(text_output="Good "), event(text_output=""), event(text_output="morning"))
    answers, _ = ask_with_each(said)
    assert answers[0] == answers[1] == [Piece("Good "), Piece(""), Piece("morning")]
    answers, _ = ask_with_each(stream(event(text_output="")))
    assert answers[0] == answers[1] == [Piece("")]


@pytest.mark.parametrize(
    "failure",
    [
        plain(503, {"error": "not ready"}),
        plain(429, {"error": "later"}),
        error("server overloaded: 448 requests wait already"),
        error("server shutting down: it drains"),
        [CLOSE],
        [head(), chunk(HEARTBEAT), CLOSE],
    ],
)
def test_what_may_work_later_is_tried_again(failure: Sequence[Step]) -> None:
    answers, servers = ask_with_each(failure, failure, ANSWER)
    assert [len(server.requests) for server in servers] == [3, 3]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 3


@pytest.mark.parametrize(
    ("script", "failure", "kind", "calls"),
    [
        (plain(503, {"error": "no"}), ConnectionFailed, ErrorKind.UNREACHABLE, 3),
        (error("server shutting down: no"), ConnectionFailed, ErrorKind.SHUTTING_DOWN, 3),
        (error("server overloaded: no"), ServerOverloaded, ErrorKind.OVERLOADED, 3),
        (error("request refused: no"), RequestRefused, ErrorKind.REFUSED, 1),
        (error("deadline exceeded: no"), RequestTimeout, ErrorKind.TIMED_OUT, 1),
        (error("engine failed: no"), ServerFailed, ErrorKind.FAILED, 1),
        (plain(404, {"error": "unknown model"}), RequestRefused, ErrorKind.REFUSED, 1),
        (plain(401, {"error": "who are you?"}), RequestRefused, ErrorKind.REFUSED, 1),
        (plain(500, {"error": "no"}), ServerFailed, ErrorKind.FAILED, 1),
        ([head(), chunk(WORD), CLOSE], ConnectionFailed, ErrorKind.UNREACHABLE, 1),
        (stream(WORD), ServerFailed, ErrorKind.FAILED, 1),
        (stream(b"data: [1]\n\n"), ServerFailed, ErrorKind.FAILED, 1),
        (stream(b"data: {\n\n"), ServerFailed, ErrorKind.FAILED, 1),
        (stream(WORD, b'data: {"text_out'), ServerFailed, ErrorKind.FAILED, 1),
        (stream(event(text_output=None, output_token_ids=7)), ServerFailed, ErrorKind.FAILED, 1),
        (stream(event(text_output="a", output_token_ids="x")), ServerFailed, ErrorKind.FAILED, 1),
        (
            stream(event(text_output="a", output_token_ids=[None])),
            ServerFailed,
            ErrorKind.FAILED,
            1,
        ),
        (stream(event(text_output="a", output_token_ids=1e999)), ServerFailed, ErrorKind.FAILED, 1),
        (stream(b"data: " + b"[" * 10**5 + b"\n\n"), ServerFailed, ErrorKind.FAILED, 1),
    ],
)
def test_what_may_not_help_is_not(
    script: Sequence[Step], failure: type[ClientError], kind: ErrorKind, calls: int
) -> None:
    failures, asked = fail_with_each(script)
    assert [type(raised) for raised in failures] == [failure] * 2
    assert [raised.kind for raised in failures] == [kind] * 2
    assert all(len(raised.request_id) == 32 for raised in failures)
    assert asked == calls


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([b"HTTP/1.1 200\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"], "no answer"),
        ([b"SSH-2.0-OpenSSH\r\n"], "no answer"),
        (plain(503, {"error": None}), 'status 503: {"error": null}'),
        (
            [b"HTTP/1.1 503\r\nRetry-After: -1\r\nContent-Length: 7\r\n\r\n<p>\nno\n"],
            "status 503: <p> no",
        ),
    ],
)
def test_what_is_no_triton_is_told_in_one_line(script: Sequence[Step], message: str) -> None:
    failures, _ = fail_with_each(script)
    for failure in failures:
        assert isinstance(failure, ConnectionFailed)
        assert message in str(failure)
        assert len(str(failure).splitlines()) == 1


def test_the_largest_message() -> None:
    limits = Limits(message_bytes=1000)
    failures, asked = fail_with_each(stream(WORD, event(text_output="a" * 1000)), limits=limits)
    assert [str(failure)[:14] for failure in failures] == ["a response of "] * 2
    assert asked == 1
    failures, asked = fail_with_each(ANSWER, limits=Limits(message_bytes=10))
    assert [str(failure)[:13] for failure in failures] == ["a request of "] * 2
    assert [type(failure) for failure in failures] == [RequestRefused] * 2
    assert asked == 0


def test_a_netrc_is_not_for_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for settings, sent in [({}, None), ({"api_key": "key"}, "Bearer key")]:
        _, servers = ask_with_each(ANSWER, **settings)
        keys = [headers.get("authorization") for server in servers for headers in server.headers]
        assert keys == [sent] * 2


def test_the_environments_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> str:
        async with ScriptedTriton(ANSWER) as proxy:
            monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
            monkeypatch.setenv("no_proxy", "localhost")
            async with AsyncClient("http://triton.example/a") as client:
                await client.complete("Hello", SHORT)
            monkeypatch.setenv("no_proxy", "triton.invalid")
            async with AsyncClient("http://triton.invalid", retries=ONCE) as client:
                with pytest.raises(ConnectionFailed, match="no answer from http://triton"):
                    await client.complete("Hello", SHORT)
            ((path, _body),) = proxy.requests
            return path

    path = asyncio.run(asyncio.wait_for(ask(), WAIT))
    assert path == "http://triton.example:8000/a/v2/models/ensemble/generate_stream"


@pytest.mark.parametrize(
    ("steps", "settings", "message"),
    [
        ([5.0], {"timeouts": Timeouts(first_token=0.2)}, "no token in 0.2 seconds"),
        (
            [head(), *[chunk(HEARTBEAT), 0.1] * 50],
            {"timeouts": Timeouts(first_token=0.5)},
            "no token in 0.5 seconds",
        ),
        (
            [head(), chunk(WORD), 0.1, chunk(WORD), 5.0],
            {"timeouts": Timeouts(between_tokens=0.5)},
            "no further token in 0.5 seconds",
        ),
        ([head(), *[chunk(WORD), 0.1] * 50], {"timeout": 0.5}, "no whole answer in 0.5 seconds"),
    ],
)
def test_a_timeout_for_each_wait(
    steps: Sequence[Step], settings: dict[str, Any], message: str
) -> None:
    failures, _ = fail_with_each(steps, **settings)
    assert [type(failure) for failure in failures] == [RequestTimeout] * 2
    assert [str(failure) for failure in failures] == [message] * 2


def test_an_early_end_closes_the_connection() -> None:
    async def leave() -> None:
        async with ScriptedTriton([head(), chunk(WORD), 60.0]) as server:
            url = f"http://{server.address}"
            async with AsyncClient(url) as client:
                pieces = client.stream_complete("Hello", SHORT)
                assert (await anext(pieces)).text == " word"
                await pieces.aclose()
                await server.disconnected.wait()
            server.disconnected.clear()
            await asyncio.to_thread(leave_blocking, url)
            await server.disconnected.wait()

    def leave_blocking(url: str) -> None:
        with Client(url) as client:
            pieces = client.stream_complete("Hello", SHORT)
            assert next(pieces).text == " word"
            pieces.close()

    asyncio.run(asyncio.wait_for(leave(), WAIT))


def test_connections_are_used_again() -> None:
    def ask(url: str) -> None:
        with Client(url) as client:
            for _ in range(3):
                client.complete("Hello", SHORT)

    async def ask_all() -> int:
        async with ScriptedTriton(ANSWER) as server:
            await asyncio.to_thread(ask, f"http://{server.address}")
            return server.connections

    assert asyncio.run(ask_all()) == 1


def test_tls(tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # The server asks for the client's certificate too.
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    files = Tls(ca=certificate, certificate=certificate, key=key)

    def ask(url: str, tls: Tls) -> str:
        with Client(url, tls=tls, retries=Retries(attempts=1)) as client:
            return client.complete("Hello", SHORT).text

    async def ask_all() -> None:
        async with ScriptedTriton(ANSWER, tls=context) as server:
            url = f"https://{server.address}"
            assert await asyncio.to_thread(ask, url, files) == " word word"
            async with AsyncClient(url, tls=files) as client:
                assert (await client.complete("Hello", SHORT)).text == " word word"
            with pytest.raises(ConnectionFailed, match="certificate verify failed"):
                await asyncio.to_thread(ask, url, Tls())
            with pytest.raises(ConnectionFailed, match="no answer from https"):
                await asyncio.to_thread(ask, url, Tls(ca=certificate))

    asyncio.run(asyncio.wait_for(ask_all(), WAIT))
