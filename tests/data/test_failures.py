"""The verb `batch` with servers that fail."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from tests.data.runs import ASK, batch, check_echoes, echo, many_rows, read, texts
from tests.standins.chat_server import ChatServer, Reply, refused


def test_a_storm_of_429(tmp_path: Path) -> None:
    """A server that runs six requests at once and refuses the others."""

    def answer(body: dict[str, Any], inside: int) -> Reply:
        if inside > 6:
            return refused(429, "busy", retry_after="0")
        time.sleep(0.005)
        return echo(body)

    with many_rows(tmp_path, answer) as (standin, arguments):
        done = batch(*arguments)
        assert done.returncode == 0, done.stderr
        assert standin.max_inside > 3
        assert standin.requests < 400  # the batch lowers its concurrency
    check_echoes(tmp_path)


def test_passing_failures_are_tried_again_and_lasting_ones_set_apart(tmp_path: Path) -> None:
    lock, seen = threading.Lock(), dict[str, int]()

    def answer(body: dict[str, Any], _inside: int) -> Reply:
        name = body["messages"][0]["content"]
        with lock:
            seen[name] = seen.get(name, 0) + 1
        if name == "7":
            return refused(500, "poison")
        if name == "8":
            return 200, {"choices": [float("nan")]}, {}
        if int(name) % 10 == 0 and seen[name] == 1:
            return refused((500, 502, 503, 504)[int(name) // 10 % 4])
        return echo(body)

    with many_rows(tmp_path, answer, rows=60) as (_standin, arguments):
        done = batch(*arguments, "--attempts", 2)
    assert done.returncode == 1
    assert "2 of 60 rows failed" in done.stderr
    assert len(texts(read((tmp_path / "out.jsonl").read_bytes()))) == 58
    failed = read((tmp_path / "out.jsonl.errors.jsonl").read_bytes())
    assert {line["custom_id"] for line in failed} == {"r7", "r8"}
    assert seen["7"] == 2
    assert seen["10"] == 2


def test_a_key_is_sent_from_the_environment(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"messages": ASK}) + "\n")
    with ChatServer(lambda body, _inside: echo(body), key="secret") as standin:
        done = batch(source, out, "--url", standin.url)
        assert done.returncode == 1
        assert "the server refuses the key (401)" in done.stderr
        assert "set NEMOTRON_API_KEY" in done.stderr
        keyed = os.environ | {"NEMOTRON_API_KEY": "secret"}
        assert batch(source, out, "--url", standin.url, env=keyed).returncode == 0
    assert all("secret" not in path.read_text() for path in tmp_path.iterdir())


def test_patience_has_an_end(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"messages": ASK}) + "\n")
    for url in ("grpc://127.0.0.1:1", "http://127.0.0.1:1"):
        done = batch(source, out, "--url", url, "--patience", 0.5)
        assert done.returncode == 1
        assert "for 0.5 seconds" in done.stderr
    with many_rows(tmp_path, lambda _body, _inside: refused(429, "never")) as (_, arguments):
        done = batch(*arguments, "--patience", 0.5)
        assert done.returncode == 1
        assert "never, for 0.5 seconds" in done.stderr
