"""The servers of a batch: how many requests they get, which ones share a run, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.errors import NemotronError
from nemotron_core.openai.answer import engine_fingerprint
from nemotron_data.batch.opening import PROBES
from tests.data.runs import (
    Asked,
    echo,
    failures,
    in_process,
    manifest,
    names,
    results,
    row,
    write,
)
from tests.standins.chat_server import ChatServer, Reply, refused
from tests.waiting import WAIT


def test_a_run_that_is_refused_as_a_whole_ends_after_twenty_requests(tmp_path: Path) -> None:
    asked = Asked(lambda _body, _inside: refused(400, "no such key"))
    source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(200)))
    with ChatServer(asked) as server:
        with pytest.raises(NemotronError, match="first 20 rows were all refused: no such key"):
            in_process(source, tmp_path / "out.jsonl", url=[server.url])
        assert len(asked.bodies) == PROBES == 20
    assert len(failures(tmp_path)) == 20


def test_refusals_of_another_kind_or_after_a_success_end_nothing(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _inside: int) -> Reply:
        number = int(body["messages"][0]["content"])
        return echo(body) if number == 30 else refused(400, f"no {number if number < 30 else ''}")

    source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(100)))
    with ChatServer(answer) as server:
        counts = in_process(source, tmp_path / "out.jsonl", url=[server.url])
    assert (counts.finished, counts.failed) == (1, 99)


def test_no_more_than_twenty_run_before_the_first_success(tmp_path: Path) -> None:
    release = threading.Event()
    inside_before: list[int] = []

    def answer(body: dict[str, Any], inside: int) -> Reply:
        if not release.is_set():
            inside_before.append(inside)
            if inside == PROBES:
                threading.Timer(0.2, release.set).start()
            release.wait(WAIT)
        return echo(body)

    source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(100)))
    with ChatServer(answer) as server:
        assert in_process(source, tmp_path / "out.jsonl", url=[server.url]).finished == 100
    assert max(inside_before) == PROBES


def test_a_model_that_does_not_exist_ends_the_run_and_names_others(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _inside: int) -> Reply:
        return echo(body) if body["model"] == "tiny" else refused(404, "no such model")

    asked = Asked(answer)
    source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(50)))
    out = tmp_path / "out.jsonl"
    with ChatServer(asked, model={"id": "tiny"}) as server:
        with pytest.raises(NemotronError, match="no model 'large', but tiny"):
            in_process(source, out, url=[server.url], model="large")
        assert len(asked.bodies) <= 20
        out.with_name("out.jsonl.manifest.json").unlink()
        assert in_process(source, out, url=[server.url], model="tiny").finished == 50


def test_the_model_is_the_servers_first_one_unless_a_row_or_an_option_names_another(
    tmp_path: Path,
) -> None:
    asked = Asked(lambda body, _: echo(body))
    source = write(tmp_path / "in.jsonl", row("a"), row("b", model="other"))
    with ChatServer(asked, model={"id": "tiny"}) as server:
        in_process(source, tmp_path / "out.jsonl", url=[server.url])
        in_process(source, tmp_path / "named.jsonl", url=[server.url], model="large")
    assert {body["model"] for body in asked.bodies[:2]} == {"tiny", "other"}
    assert {body["model"] for body in asked.bodies[2:]} == {"large", "other"}
    written = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert written["defaults"]["model"] == "tiny"


def test_the_number_of_requests_at_once_is_remembered(tmp_path: Path) -> None:
    inside_of: dict[str, int] = {}
    barrier = threading.Barrier(60)

    def answer(body: dict[str, Any], inside: int) -> Reply:
        name = body["messages"][0]["content"]
        inside_of[name] = inside
        if name.startswith("second") and name != "second-0":
            barrier.wait(WAIT)
        return echo(body)

    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with ChatServer(answer) as server:
        first = [row(str(number)) for number in range(400)]
        in_process(write(source, *first), out, url=[server.url], concurrency=128)
        assert manifest(out)["concurrency"].keys() == {server.url}
        content = manifest(out) | {"concurrency": {server.url: 60}}
        out.with_name("out.jsonl.manifest.json").write_text(json.dumps(content))
        # Sixty at once are needed: with the first answer the number of before is opened.
        second = [row(f"second-{number}") for number in range(61)]
        in_process(write(source, *first, *second), out, url=[server.url], concurrency=128)
    assert len(results(out)) == 461


def test_several_servers_share_the_rows(tmp_path: Path) -> None:
    servers = [Asked(), Asked()]
    source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(200)))
    with ChatServer(servers[0]) as first, ChatServer(servers[1]) as second:
        urls = tmp_path / "urls"
        urls.write_text(f"# two\n{first.url}\n\n{second.url}\n")
        assert in_process(source, tmp_path / "out.jsonl", url=[f"@{urls}"]).finished == 200
    assert len(results(tmp_path / "out.jsonl")) == 200
    assert min(len(server.bodies) for server in servers) > 40
    assert manifest(tmp_path / "out.jsonl")["concurrency"].keys() == {first.url, second.url}


STANDIN = """
import time
from tests.standins.chat_server import ChatServer
from tests.data.runs import echo
def answer(body, inside):
    time.sleep(0.01)
    return echo(body)
with ChatServer(answer) as server:
    print(server.url, flush=True)
    input()
"""


def test_the_rows_of_a_server_that_dies_go_to_the_others(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STANDIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        urls = [str(process.stdout and process.stdout.readline().strip()) for process in processes]
        source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(1500)))
        out = tmp_path / "out.jsonl"

        def kill() -> None:
            while not out.exists() or out.read_bytes().count(b"\n") < 200:
                pass
            processes[1].kill()

        killer = threading.Thread(target=kill)
        killer.start()
        counts = in_process(source, out, url=urls, patience=30)
        killer.join()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert (counts.finished, counts.failed) == (1500, 0)
    assert results(out) == {str(number): f"answer to {number}" for number in range(1500)}


def test_servers_with_other_engines_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", row("a"), row("b"))
    with (
        ChatServer(lambda body, _: echo(body), model={"id": "m", "engine": "1"}) as first,
        ChatServer(lambda body, _: echo(body), model={"id": "m", "engine": "2"}) as second,
    ):
        urls = [first.url, second.url]
        with pytest.raises(NemotronError, match="another engine"):
            in_process(source, tmp_path / "out.jsonl", url=urls)
        assert names(tmp_path) == ["in.jsonl"]
        options: dict[str, Any] = {"url": urls, "allow_different_engines": True}
        assert in_process(source, tmp_path / "out.jsonl", **options).finished == 2


def test_the_key_of_openai_is_the_second_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in.jsonl", row("a"))
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    with ChatServer(lambda body, _inside: echo(body), key="secret") as server:
        with pytest.raises(NemotronError, match="set NEMOTRON_API_KEY or OPENAI_API_KEY"):
            in_process(source, tmp_path / "out.jsonl", url=[server.url])
        monkeypatch.setenv("NEMOTRON_API_KEY", "secret")
        assert in_process(source, tmp_path / "out.jsonl", url=[server.url]).finished == 1


def test_the_servers_of_a_resumed_run_may_differ_if_that_is_allowed(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", row("a")), tmp_path / "out.jsonl"
    with (
        ChatServer(lambda body, _: echo(body), model={"id": "m", "engine": "1"}) as first,
        ChatServer(lambda body, _: echo(body), model={"id": "m", "engine": "2"}) as second,
    ):
        in_process(source, out, url=[first.url])
        write(source, row("a"), row("b"))
        with pytest.raises(NemotronError, match='server\'s engine was "1" and is "2"'):
            in_process(source, out, url=[second.url])
        in_process(source, out, url=[second.url], allow_different_engines=True)
    assert results(out).keys() == {"a", "b"}


def test_an_engine_that_is_not_known_is_not_compared(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", row("a"))
    unknown: dict[str, Any] = {"id": "m", "engine": None}
    with (
        ChatServer(lambda body, _: echo(body), model=unknown) as first,
        ChatServer(lambda body, _: echo(body), model={"id": "m", "engine": "2"}) as second,
    ):
        urls = [first.url, second.url]
        assert in_process(source, tmp_path / "out.jsonl", url=urls).finished == 1
    assert manifest(tmp_path / "out.jsonl")["server"] == {
        "model": "m",
        "engine": "2",
        "checkpoint": None,
        "template": None,
    }


OLD, NEW = "a" * 64, "b" * 64


def changing(body: dict[str, Any], _inside: int) -> Reply:
    """Answer from one engine, and the last row, which is asked last, from another."""
    status, content, headers = echo(body)
    engine = NEW if body["messages"][0]["content"] == "2" else OLD
    return status, {**content, "system_fingerprint": engine_fingerprint(engine)}, headers


@pytest.mark.parametrize(
    ("model", "is_allowed"),
    [
        ({"id": "m", "engine": OLD}, False),
        ({"id": "m", "engine": OLD}, True),
        ({"id": "m"}, False),
    ],
)
def test_an_engine_that_changes_behind_its_gateway_is_named(
    model: dict[str, str], is_allowed: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ends the run; servers that do not describe their engine change the name by themselves."""
    source, out = write(tmp_path / "in.jsonl", row("0"), row("1"), row("2")), tmp_path / "out.jsonl"
    options: dict[str, Any] = {"concurrency": 1, "allow_different_engines": is_allowed}
    with ChatServer(changing, model=model) as server:
        if "engine" in model and not is_allowed:
            with pytest.raises(NemotronError, match=r"engine was fp_a+ and is now fp_b+ "):
                in_process(source, out, url=[server.url], **options)
            assert results(out).keys() == {"0", "1"}
        else:
            assert in_process(source, out, url=[server.url], **options).finished == 3
            assert "engine was fp_aaaaaaaaaaaaaaaa and is now fp_b" in capfd.readouterr().err
