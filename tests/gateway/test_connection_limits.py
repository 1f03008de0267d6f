"""A server that faces people: bounds on connections, hosts, origins; draining; silence."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nemotron_core.generation import Piece
from nemotron_core.openai.errors import bad_request
from nemotron_gateway.app import Gateway
from nemotron_gateway.connection_limits import HostCheck
from nemotron_gateway.settings import GatewaySettings, Timeouts
from tests.gateway.asgi import Connection, ScriptedEngine, scope
from tests.gateway.process import MODEL, Running, running
from tests.waiting import WAIT, until

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"


@contextmanager
def connected(gateway: Running) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=WAIT) as connection:
        yield connection


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes until the gateway closes a connection."""
    data = b""
    try:
        while part := connection.recv(1000):
            data += part
    except ConnectionResetError:
        return data
    return data


def answer_of(connection: socket.socket) -> bytes:
    """Return the answer of `/health/live`."""
    data = b""
    while not data.endswith(b"}"):
        part = connection.recv(1000)
        assert part, data
        data += part
    return data


@pytest.fixture(scope="module")
def bounded(triton: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("bounded")
    settings = folder / "gateway.yaml"
    settings.write_text(
        "limits: {header_bytes: 4000, headers: 20, connections_per_address: 600}\n"
        "timeouts: {headers: 1, body: 1, keep_alive: 1}\n"
    )
    with running(folder, triton, "--settings", str(settings)) as gateway:
        yield gateway


@pytest.mark.parametrize(
    "request_",
    [
        LIVE + b"X: " + b"a" * 5000,
        b"GET /" + b"a" * 5000,
        LIVE + b"".join(b"X-%d: a\r\n" % n for n in range(30)),
    ],
)
def test_headers_have_a_bound(bounded: Running, request_: bytes) -> None:
    """Also before they are complete, so that nobody can fill the memory with them."""
    with connected(bounded) as connection:
        connection.sendall(request_)
        assert rest_of(connection).startswith(b"HTTP/1.1 431 ")
    assert bounded.ask("GET", "/health/live").status == 200


def test_slow_connections_are_closed(bounded: Running) -> None:
    """Silent ones, those that trickle headers, and those that trickle a body nobody reads."""
    starts = [b"", LIVE + b"X", LIVE + b"Content-Length: 1000\r\n\r\n"]
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(bounded)) for _ in starts]
        for connection, start in zip(connections, starts, strict=True):
            connection.sendall(start)
        assert answer_of(connections[2]).startswith(b"HTTP/1.1 200 ")
        is_over = threading.Event()

        def trickle() -> None:
            while not is_over.wait(0.1):
                for connection in connections[1:]:
                    try:
                        connection.sendall(b"a")
                    except OSError:
                        continue

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert [rest_of(connection) for connection in connections] == [b"", b"", b""]
        finally:
            is_over.set()
            thread.join()


def test_a_connection_that_is_kept_alive_serves_on(bounded: Running) -> None:
    with connected(bounded) as connection:
        for _ in range(3):
            connection.sendall(LIVE + b"\r\n")
            assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
        assert rest_of(connection) == b""


def test_a_late_body_is_answered_and_its_connection_closed(bounded: Running) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(bounded) as connection:
        connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
        data = rest_of(connection)
    assert data.startswith(b"HTTP/1.1 408 ")


def test_many_idle_and_trickling_connections_hold_up_nobody(bounded: Running) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(bounded)) for _ in range(500)]
        for connection in idle[::2]:
            connection.sendall(LIVE)
        answers: list[int] = []

        def ask() -> None:
            for _ in range(5):
                answers.append(bounded.chat("Who are you?", max_tokens=4).status)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 40
        assert {rest_of(connection) for connection in idle} == {b""}


def test_connections_of_one_address_have_a_limit(triton: str, tmp_path: Path) -> None:
    settings = tmp_path / "gateway.yaml"
    settings.write_text("limits: {connections_per_address: 3}\n")
    with running(tmp_path, triton, "--settings", str(settings)) as gateway, ExitStack() as stack:
        held = [stack.enter_context(connected(gateway)) for _ in range(3)]
        for connection in held:
            connection.sendall(LIVE + b"\r\n")
            assert answer_of(connection)
        with connected(gateway) as refused:
            assert refused.recv(1000).startswith(b"HTTP/1.1 503 ")
        held[0].close()

        def is_served() -> bool:
            with connected(gateway) as connection:
                connection.sendall(LIVE + b"Connection: close\r\n\r\n")
                return rest_of(connection).startswith(b"HTTP/1.1 200 ")

        until(is_served)


@pytest.mark.parametrize(
    ("host", "is_served"),
    [
        ("localhost", True),
        ("LOCALHOST:1424", True),
        ("127.0.0.1:80", True),
        ("[::1]:1424", True),
        ("[::1]", True),
        ("localhost.", True),
        ("", True),
        ("evil.example", False),
        ("evil.example:1424", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.nip.io", False),
    ],
)
def test_hosts(host: str, is_served: bool) -> None:
    assert HostCheck(("127.0.0.1", "::1", "localhost")).serves(host) == is_served
    assert HostCheck(()).serves(host)
    assert HostCheck(("*",)).serves(host)


def test_another_sites_name_is_not_served_on_loopback(
    gateway: Running, triton: str, tmp_path: Path
) -> None:
    """A page of that site could point its name to 127.0.0.1 and read every answer."""
    evil = {"Host": "evil.example"}
    for path in ("/", "/v1/models", "/health/live"):
        answer = gateway.ask("GET", path, headers=evil)
        assert answer.status == 421
        assert "'evil.example' is not served here" in answer.message
    settings = tmp_path / "gateway.yaml"
    settings.write_text("hosts: [llm.example]\n")
    with running(tmp_path, triton, "--settings", str(settings)) as named:
        assert named.ask("GET", "/health/live", headers={"Host": "llm.example"}).status == 200
        assert named.ask("GET", "/health/live", headers=evil).status == 421
    keys = {"NEMOTRON_API_KEYS": "a"}
    folder = tmp_path / "keyed"
    folder.mkdir()
    with running(folder, triton, environment=keys) as keyed:
        assert keyed.ask("GET", "/health/live", headers=evil).status == 200


def test_other_origins_are_off_unless_named(gateway: Running, triton: str, tmp_path: Path) -> None:
    origin = {"Origin": "https://app.example"}
    preflight = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, authorization",
    }
    answer = gateway.ask("OPTIONS", "/v1/chat/completions", headers=preflight)
    assert answer.status == 405
    assert "access-control-allow-origin" not in gateway.ask("GET", "/", headers=origin).headers
    settings = tmp_path / "gateway.yaml"
    settings.write_text("cors_origins: ['https://app.example']\n")
    with running(tmp_path, triton, "--settings", str(settings)) as open_:
        answer = open_.ask("OPTIONS", "/v1/chat/completions", headers=preflight)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "stream": True}
        streamed = open_.ask("POST", "/v1/chat/completions", body, origin)
        assert streamed.headers["access-control-allow-origin"] == "https://app.example"
        other = open_.ask("GET", "/v1/models", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_draining_gateway_says_so(triton: str, tmp_path: Path) -> None:
    with running(tmp_path, triton) as gateway:
        answers = []
        body = {"max_tokens": 300, "min_tokens": 300}
        thread = threading.Thread(
            target=lambda: answers.append(gateway.complete("<extra_id_1>Go", **body))
        )
        thread.start()
        until(lambda: gateway.metric("nemotron_gateway_requests_running") == 1)
        gateway.process.send_signal(signal.SIGTERM)
        until(lambda: gateway.ask("GET", "/health/ready").status == 503)
        refused = gateway.chat("Hello")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "shuts down" in refused.message
        assert gateway.ask("GET", "/health/live").status == 200
        thread.join()
        assert [a.json["usage"]["completion_tokens"] for a in answers] == [300]
        assert gateway.process.wait(WAIT) == 0


def stream(script: list[object], monkeypatch: pytest.MonkeyPatch) -> Connection:
    """Answer a streamed request with a heartbeat every 50 ms."""
    engine = ScriptedEngine(script)  # type: ignore[arg-type]
    engine.install(monkeypatch)
    settings = GatewaySettings(timeouts=Timeouts(heartbeat=0.05))
    connection = Connection(json.dumps({"model": MODEL, "prompt": "Go", "stream": True}).encode())

    async def run() -> None:
        call = scope("POST", "/v1/completions")
        await Gateway(settings)(call, connection.receive, connection.send)

    asyncio.run(run())
    return connection


def test_comments_while_the_model_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    last = Piece(" word", (7,), "length", num_output_tokens=1)
    answer = stream([0.2, Piece("A", (5,)), 0.2, last], monkeypatch).answer()
    comment = b": the model is at work\n\n"
    first, second = answer.data.index(b'"A"'), answer.data.index(b" word")
    assert answer.status == 200
    assert answer.data.count(comment, 0, first) >= 2
    assert answer.data.count(comment, first, second) >= 2
    assert answer.data.endswith(b"data: [DONE]\n\n")
    quick = stream([last], monkeypatch).answer()
    assert comment not in quick.data
    assert GatewaySettings().timeouts.heartbeat == 15


def test_a_failure_after_a_comment_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = stream([0.2, bad_request("too late for a status")], monkeypatch).answer()
    assert answer.status == 200
    assert b'"message":"too late for a status"' in answer.data.replace(b'": "', b'":"')
    assert stream([bad_request("in time")], monkeypatch).answer().status == 400
