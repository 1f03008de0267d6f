"""What an operator relies on: keys, limits, deadlines, disconnects, drains, logs, metrics."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.errors import NemotronError
from nemotron_core.metrics import RUNNING_METRIC, WAITING_METRIC
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_gateway.app import Gateway
from nemotron_gateway.nemo_schema import GenerateRequest
from nemotron_gateway.settings import GatewaySettings, load_settings
from nemotron_serve.model_server import ModelServer
from tests.gateway.process import MODEL, NEMOTRON, Running, running
from tests.serve.wire import metric
from tests.waiting import WAIT, until

ENDLESS = {"max_tokens": 4000, "min_tokens": 4000}
GO = "<extra_id_1>Go"
SLOTS = 64


@contextmanager
def asked(gateway: Running, id_: str, **more: Any) -> Iterator[http.client.HTTPConnection]:
    """Send a request for an endless answer, and disconnect at the end of the context."""
    body = {"model": MODEL, "prompt": GO, "temperature": 0} | ENDLESS | more
    headers = {"Content-Type": "application/json", "X-Request-ID": id_}
    connection = gateway.connect()
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    try:
        yield connection
    finally:
        connection.close()


def status_of(gateway: Running, id_: str) -> int | None:
    """Return the status of a request in the log, or `None` while it is not there."""
    return next((line["status"] for line in gateway.lines() if line["request_id"] == id_), None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_frees_the_engine(stream: bool, gateway: Running, server: ModelServer) -> None:
    id_ = f"left-{stream}"
    with asked(gateway, id_, stream=stream) as connection:
        if stream:
            assert connection.getresponse().readline().startswith(b"data: ")
        until(lambda: metric(server, RUNNING_METRIC) == 1)
    until(lambda: metric(server, RUNNING_METRIC) == 0)
    until(lambda: status_of(gateway, id_) == 499)


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_frees_the_place_in_the_engines_queue(
    stream: bool, gateway: Running, server: ModelServer
) -> None:
    """The shared server has 64 slots, which one request takes."""
    id_, first = f"left-in-the-queue-{stream}", f"takes-all-slots-{stream}"
    with asked(gateway, first, n=SLOTS, temperature=1, stream=True) as all_slots:
        assert all_slots.getresponse().readline().startswith(b"data: ")
        until(lambda: metric(server, RUNNING_METRIC) == SLOTS)
        with asked(gateway, id_, stream=stream):
            until(lambda: metric(server, WAITING_METRIC) == 1)
        until(lambda: metric(server, WAITING_METRIC) == 0)
        until(lambda: metric(server, RUNNING_METRIC) == SLOTS)
        assert status_of(gateway, first) is None
        until(lambda: status_of(gateway, id_) == 499)
    until(lambda: metric(server, RUNNING_METRIC) == 0)


def test_a_request_id_comes_back_and_is_in_the_log(gateway: Running) -> None:
    answer = gateway.ask("GET", "/v1/models", headers={"X-Request-ID": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    until(lambda: any(line["request_id"] == "mine-1" for line in gateway.lines()))
    made = gateway.ask("GET", "/v1/models", headers={"X-Request-ID": "bad id"})
    assert len(made.headers["x-request-id"]) == 32


def test_the_log_has_no_text(gateway: Running) -> None:
    secret = "My secret is zanzibar"
    answer = gateway.chat(secret)
    id_ = answer.headers["x-request-id"]
    until(lambda: any(line["request_id"] == id_ for line in gateway.lines()))
    (line,) = (line for line in gateway.lines() if line["request_id"] == id_)
    assert line["path"] == "/v1/chat/completions"
    assert (line["status"], line["method"]) == (200, "POST")
    assert line["prompt_tokens"] == answer.json["usage"]["prompt_tokens"]
    assert line["generated_tokens"] == answer.json["usage"]["completion_tokens"]
    assert "zanzibar" not in gateway.log.read_text()


def test_metrics(gateway: Running) -> None:
    route = 'route="/v1/chat/completions",status="200"'
    names = [f"nemotron_gateway_requests_total{{{route}}}", "nemotron_gateway_prompt_tokens_total"]
    names += ["nemotron_gateway_generated_tokens_total"]
    names += ["nemotron_gateway_time_to_first_token_seconds_count"]
    names += ["nemotron_gateway_inter_token_latency_seconds_count"]
    gateway.chat("Hello")  # so that all are there
    before = [gateway.metric(name) for name in names]
    *_, last = gateway.chat("Hello", stream=True, stream_options={"include_usage": True}).events()
    usage = last["usage"]
    until(lambda: gateway.metric(names[0]) == before[0] + 1)
    after = [gateway.metric(name) for name in names]
    requests, prompt, generated, first, between = (
        a - b for a, b in zip(after, before, strict=True)
    )
    assert (requests, first) == (1, 1)
    assert (prompt, generated) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert 1 <= between < generated
    assert gateway.metric("nemotron_gateway_requests_running") == 0
    gateway.ask("GET", "/made/up")
    assert "/made/up" not in gateway.ask("GET", "/metrics").text


def test_health(gateway: Running) -> None:
    assert [gateway.ask("GET", f"/health/{what}").status for what in ("live", "ready")] == [
        200,
        200,
    ]


def test_without_triton_it_lives_but_is_not_ready(tmp_path: Path) -> None:
    with running(tmp_path, "127.0.0.1:9") as gateway:
        assert gateway.ask("GET", "/health/live").status == 200
        assert gateway.ask("GET", "/health/ready").status == 503
        answer = gateway.chat("Hello")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "no answer from 127.0.0.1:9" in answer.message
        assert gateway.ask("GET", "/").status == 200


def test_keys(triton: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n\nsecond-key\n")
    with running(tmp_path, triton, "--api-keys-file", str(keys)) as gateway:
        for path in ("/", "/docs", "/openapi.json", "/health/live", "/health/ready", "/metrics"):
            assert gateway.ask("GET", path).status == 200
        for sent in (None, "Bearer wrong", "Bearer", "Basic first-key", "Bearer first-key\xff"):
            headers = {"Authorization": sent} if sent else {}
            answer = gateway.ask("GET", "/v1/models", headers=headers)
            assert answer.status == 401
            assert answer.json["error"]["code"] == "invalid_api_key"
            assert gateway.ask("PUT", "/generate", {"sentences": ["a"]}, headers).status == 401
        for key in ("first-key", "second-key"):
            headers = {"Authorization": f"Bearer {key}"}
            assert gateway.ask("GET", "/v1/models", headers=headers).status == 200
        assert gateway.ask("GET", "/openapi.json").json["paths"]["/v1/models"]["get"]["security"]
        log = gateway.log.read_text()
        assert "first-key" not in log
        assert "wrong" not in log


def test_keys_of_the_environment(triton: str, tmp_path: Path) -> None:
    environment = {"NEMOTRON_API_KEYS": "one\ntwo"}
    with running(tmp_path, triton, environment=environment) as gateway:
        assert gateway.ask("GET", "/v1/models").status == 401
        headers = {"Authorization": "bearer two"}
        assert gateway.ask("GET", "/v1/models", headers=headers).status == 200


def test_a_full_gateway_and_limits(triton: str, server: ModelServer, tmp_path: Path) -> None:
    settings = tmp_path / "gateway.yaml"
    settings.write_text(
        "log_prompts: true\n"
        "limits: {requests: 2, max_tokens: 2000, prompts: 3, prompt_characters: 100, answers: 2}\n"
        "timeouts: {drain: 240}\n"  # as long as a busy machine may take for the two answers
    )
    with running(tmp_path, triton, "--settings", str(settings)) as gateway:
        assert gateway.complete(["a"] * 3, max_tokens=1).status == 200  # two at a time
        sentences = {"sentences": ["a"] * 3, "tokens_to_generate": 1}
        assert gateway.ask("PUT", "/generate", sentences).status == 200
        answers = []
        settings_ = {"max_tokens": 2000, "min_tokens": 2000}
        threads = [
            threading.Thread(target=lambda: answers.append(gateway.complete(GO, **settings_)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        until(lambda: metric(server, RUNNING_METRIC) == 2)
        refused = gateway.chat("Hello")
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.json["error"]["code"] == "overloaded"
        assert gateway.metric("nemotron_gateway_requests_running") == 2
        for number in (signal.SIGTERM, signal.SIGINT):  # one that every process gets comes twice
            gateway.process.send_signal(number)  # and they finish all the same
        for thread in threads:
            thread.join()
        assert [answer.status for answer in answers] == [200, 200], answers
        assert {a.json["usage"]["completion_tokens"] for a in answers} == {2000}
        assert gateway.process.wait(WAIT) == 0
        assert any(line.get("body", {}).get("prompt") == GO for line in gateway.lines())
    with running(tmp_path, triton, "--settings", str(settings)) as gateway:
        for answer, message in [
            (gateway.chat("a" * 101), "a prompt has at most 100 characters"),
            (gateway.complete("a", max_tokens=2001), "at most 2000 tokens"),
            (gateway.complete(["a"] * 4), "at most 3 prompts"),
            (gateway.complete("a", n=3), "at most 2 answers"),
        ]:
            assert answer.status == 400
            assert message in answer.message
        many = gateway.ask("PUT", "/generate", {"sentences": ["a"] * 4})
        assert (many.status, many.json) == (400, "Maximum number of sentences is 3")


def test_deadlines(triton: str, tmp_path: Path) -> None:
    settings = tmp_path / "gateway.yaml"
    settings.write_text("timeouts: {request: 0.5, body: 0.3}\n")
    with running(tmp_path, triton, "--settings", str(settings)) as gateway:
        late = gateway.complete(GO, **ENDLESS)
        assert (late.status, late.json["error"]["code"]) == (504, "timeout")
        streamed = gateway.complete(GO, stream=True, **ENDLESS)
        *_, last = streamed.events()
        assert last["error"]["code"] == "timeout"
        assert gateway.ask("PUT", "/generate", {"sentences": [GO], "tokens_to_generate": 4000,
            "min_tokens_to_generate": 4000}).status == 504  # fmt: skip
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=WAIT) as slow:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
            slow.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("seconds", "signals"),
    [("1", [signal.SIGTERM]), ("3600", [signal.SIGINT, signal.SIGINT])],
    ids=["its time", "a second Ctrl-C"],
)
def test_a_drain_has_an_end(
    seconds: str, signals: list[signal.Signals], triton: str, server: ModelServer, tmp_path: Path
) -> None:
    with running(tmp_path, triton, "--drain-timeout", seconds) as gateway:
        body = {"model": MODEL, "prompt": GO, "stream": True, "temperature": 0} | ENDLESS
        headers = {"Content-Type": "application/json"}
        connections = [gateway.connect() for _ in range(8)]
        for connection in connections:
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            assert connection.getresponse().readline()
        for number in signals:
            gateway.process.send_signal(number)
            time.sleep(0.2)  # two at once are one
        gateway.process.wait(WAIT)
        for connection in connections:
            connection.close()
    until(lambda: metric(server, RUNNING_METRIC) == 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: 70000", "port: "),
        ("prot: 1", "prot: Extra inputs are not permitted"),
        ("limits: {request: 5}", "limits.request: Extra inputs"),
        ("- a", "file: "),
        ("{", "not plain YAML"),
    ],
)
def test_wrong_settings(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    with pytest.raises(NemotronError, match=message):
        load_settings(path, {})


def test_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("port: 5\ntimeouts: {request: 7, drain: 8}")
    settings = load_settings(path, {"port": 6, "timeouts.request": 9.0, "address": None})
    assert (settings.port, settings.timeouts.request, settings.timeouts.drain) == (6, 9, 8)
    assert settings.address == "127.0.0.1"
    with pytest.raises(NemotronError, match=r"timeouts\.request: "):
        load_settings(None, {"timeouts.request": -1.0})


def test_a_port_that_is_taken(gateway: Running) -> None:
    done = subprocess.run(
        [NEMOTRON, "gateway", "--port", str(gateway.port)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert done.returncode == 1
    assert f"the port {gateway.port} cannot be used" in done.stderr


def test_the_description_has_every_route_and_key(gateway: Running) -> None:
    description = gateway.ask("GET", "/openapi.json").json
    endpoints = Gateway(GatewaySettings()).endpoints
    paths = {endpoint.path.replace(":path}", "}") for endpoint in endpoints if endpoint.summary}
    assert set(description["paths"]) == paths
    assert len(paths) > 12
    schemas = description["components"]["schemas"]
    for body in (ChatRequest, CompletionRequest, GenerateRequest):
        assert set(schemas[body.__name__]["properties"]) == set(body.model_fields)
    text = json.dumps(description)
    refs = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert refs <= set(schemas)
