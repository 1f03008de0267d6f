"""Batches against small stand-in servers: what is asked, what is stored, and what is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.errors import NemotronError
from nemotron_data.rows import formats
from tests.data.runs import (
    NEMOTRON,
    Asked,
    batch,
    echo,
    failures,
    in_process,
    manifest,
    names,
    read,
    results,
    row,
    texts,
    write,
)
from tests.standins.chat_server import ChatServer, Reply, refused, said


def test_only_new_and_changed_rows_are_asked(
    standin: ChatServer, asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    urls = [standin.url]
    in_process(write(source, row("a"), row("b"), row("c"), row("d")), out, url=urls)
    assert asked.questions == ["a", "b", "c", "d"]
    counts = in_process(write(source, row("e"), row("d"), row("b", "B"), row("a")), out, url=urls)
    assert (counts.finished, counts.failed) == (4, 0)
    assert asked.questions == ["B", "e"]
    expected = {name: f"answer to {text}" for name, text in zip("adbe", "adBe", strict=True)}
    assert results(out) == expected
    replaced = tmp_path / "out.jsonl.replaced.jsonl"
    assert results(replaced) == {"b": "answer to b", "c": "answer to c"}
    capsys.readouterr()
    in_process(write(source, row("d"), row("a")), out, url=["http://none:1"])
    shown = capsys.readouterr().err
    assert "every row has its result, so nothing is sent" in shown
    assert "2 of 2 rows" in shown
    assert results(out).keys() == {"a", "d"}
    assert len(read(replaced.read_bytes())) == 4
    assert manifest(out)["rows"] == manifest(out)["finished"] == 2


def test_a_refused_row_is_corrected_and_asked_again(tmp_path: Path) -> None:
    asked = Asked(lambda body, _: refused(400) if "bad" in str(body) else echo(body))
    source, out = write(tmp_path / "in.jsonl", row("a"), row("b", "bad")), tmp_path / "out.jsonl"
    with ChatServer(asked) as server:
        assert in_process(source, out, url=[server.url]).failed == 1
        assert failures(tmp_path)["b"]["remedy"] == "correct the row"
        assert asked.questions == ["a", "bad"]
        assert (
            in_process(write(source, row("a"), row("b", "good")), out, url=[server.url]).failed == 0
        )
        assert asked.questions == ["good"]
    assert names(tmp_path) == ["in.jsonl", "out.jsonl", "out.jsonl.manifest.json"]


def test_an_input_without_any_kept_row_is_refused_before_anything_is_written(
    standin: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    source, out = write(tmp_path / "in.jsonl", row("a"), row("b")), tmp_path / "out.jsonl"
    in_process(source, out, url=[standin.url])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(source, row("x"), row("y"))
    with pytest.raises(NemotronError, match="none of the 2 results belongs to a row"):
        in_process(source, out, url=[standin.url])
    before[source] = source.read_bytes()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert asked.questions == ["a", "b"]


def test_columns_come_back_and_are_not_sent(
    standin: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", row("a", source="wiki", level=3))
    in_process(source, tmp_path / "out.jsonl", url=[standin.url])
    assert asked.bodies[0].keys() == {"messages", "model", "max_tokens", "temperature", "seed"}
    (result,) = read((tmp_path / "out.jsonl").read_bytes())
    assert result["metadata"] == {"source": "wiki", "level": 3}


def test_a_seed_and_a_length_can_be_left_out(
    standin: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", row("a"))
    options: dict[str, Any] = {"no_seed": True, "no_max_tokens": True, "url": [standin.url]}
    in_process(source, tmp_path / "out.jsonl", **options)
    assert asked.bodies[0].keys() == {"messages", "model", "temperature"}


def test_one_bad_line_beside_good_ones(
    standin: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "LONGEST_LINE", 1000)
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row("long", "x" * 1000)) + "\n" + json.dumps(row("a")) + "\n")
    counts = in_process(source, tmp_path / "out.jsonl", url=[standin.url])
    assert (counts.finished, counts.failed) == (1, 1)
    (failed,) = read((tmp_path / "out.jsonl.errors.jsonl").read_bytes())
    assert failed["error"]["line"] == 1
    assert failed["error"]["message"] == "the line has more than 1,000 bytes"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b'{"question": "hi"}\n{"question": "ho"}\n',
            "none of the 2 rows is a request",
        ),
        (b'{"prompt": "na\xe9"}\n', "not UTF-8: byte 0xe9 at column 15"),
        (b'\xff\xfe{\0"\0', "UTF-16"),
        (b"SQLite format 3\0", "neither text nor a table"),
    ],
)
def test_an_input_without_rows_is_one_sentence_and_leaves_nothing(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(NemotronError, match=reason):
        in_process(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert names(tmp_path) == ["in.jsonl"]


def test_a_server_that_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", row("a"))
    with pytest.raises(NemotronError, match="for 0 seconds"):
        in_process(source, tmp_path / "out.jsonl", url=["http://127.0.0.1:1"], patience=0)
    assert names(tmp_path) == ["in.jsonl"]


def test_the_reasons_stay_while_the_server_is_away(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", row("a"), row("b")), tmp_path / "out.jsonl"
    asked = Asked(
        lambda body, _: refused(400) if body["messages"][0]["content"] == "b" else echo(body)
    )
    with ChatServer(asked) as server:
        in_process(source, out, url=[server.url])
    before = failures(tmp_path)
    with pytest.raises(NemotronError, match="for 0 seconds"):
        in_process(source, out, url=["http://127.0.0.1:1"], patience=0)
    assert failures(tmp_path) == before


def test_an_answer_that_is_not_accepted_is_asked_again_with_another_seed(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _inside: int) -> Reply:
        question = body["messages"][0]["content"]
        if question == "never" or (
            question == "second" and body["seed"] == seeds.setdefault(1, body["seed"])
        ):
            return said("")
        return echo(body)

    seeds: dict[int, int] = {}
    asked = Asked(answer)
    source = write(tmp_path / "in.jsonl", row("a", "second"), row("b", "never", seed=7), row("c"))
    out = tmp_path / "out.jsonl"
    with ChatServer(asked) as server:
        options: dict[str, Any] = {"url": [server.url], "temperature": 1.0, "attempts": 3}
        counts = in_process(source, out, **options)
    assert (counts.finished, counts.failed) == (2, 1)
    by_question: dict[str, list[int]] = {}
    for body in asked.bodies:
        by_question.setdefault(body["messages"][0]["content"], []).append(body["seed"])
    assert len(set(by_question["second"])) == 2
    assert sorted(by_question["never"]) == [7, 8, 9]
    assert failures(tmp_path)["b"]["message"] == "empty"
    assert manifest(out)["last_run"]["not_accepted"] == {"empty": 4}
    assert results(out).keys() == {"a", "c"}


def test_a_greedy_answer_that_is_not_accepted_is_not_asked_again(tmp_path: Path) -> None:
    asked = Asked(lambda _body, _inside: said("no JSON"))
    source = write(tmp_path / "in.jsonl", row("a"))
    with ChatServer(asked) as server:
        counts = in_process(source, tmp_path / "out.jsonl", url=[server.url], accept=["json"])
    assert counts.failed == len(asked.bodies) == 1
    (failed,) = read((tmp_path / "out.jsonl.errors.jsonl").read_bytes())
    assert failed["error"]["code"] == "not_accepted"
    assert failed["response"]["body"]["choices"][0]["message"]["content"] == "no JSON"


def test_the_manifest_says_what_was_done(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(10)))
    seen: Counter[str] = Counter()

    def answer(body: dict[str, Any], _inside: int) -> Reply:
        name = body["messages"][0]["content"]
        seen[name] += 1
        return (
            refused(429, retry_after="0")
            if name == "3" and seen[name] == 1
            else said("x", tokens=4)
        )

    with ChatServer(answer) as server:
        options: dict[str, Any] = {"url": [server.url], "price_in": 1e6, "price_out": 2e6}
        in_process(source, tmp_path / "out.jsonl", **options)
    run = manifest(tmp_path / "out.jsonl")["last_run"]
    assert (run["answered"], run["failed"], run["retries"], run["overloads"]) == (10, 0, 1, 1)
    assert (run["prompt_tokens"], run["completion_tokens"], run["cost"]) == (10, 40, 10 + 80)
    assert run["finish_reasons"] == {"stop": 10}
    assert 0 < run["latency_p50"] <= run["latency_p95"] < run["seconds"]
    assert run["rows_per_second"] == pytest.approx(10 / run["seconds"], rel=0.01)


def test_metrics_while_it_runs(tmp_path: Path) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pages: list[str] = []

    def answer(body: dict[str, Any], _inside: int) -> Reply:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            pages.append(response.read().decode())
        return echo(body)

    source = write(tmp_path / "in.jsonl", row("a"))
    with ChatServer(answer) as server:
        in_process(source, tmp_path / "out.jsonl", url=[server.url], metrics_port=port)
        assert f'nemotron_batch_running{{url="{server.url}"}} 1.0' in pages[0]
        assert "nemotron_batch_rows_answered_total 0.0" in pages[0]
        with closing(socket.socket()) as taken, pytest.raises(NemotronError, match="cannot listen"):
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            taken.listen()
            write(source, row("a"), row("b"))
            in_process(source, tmp_path / "out.jsonl", url=[server.url], metrics_port=port)


def test_a_dry_run_sends_and_writes_nothing(
    standin: ChatServer, asked: Asked, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", row("a", "x" * 4000), row("b"), 7)
    options: dict[str, Any] = {"url": [standin.url], "dry_run": True, "price_out": 1e6}
    in_process(source, tmp_path / "out.jsonl", **options)
    out, err = capfd.readouterr()
    assert json.loads(out)["body"]["messages"][0]["content"] == "x" * 4000
    assert "2,048.00" in err  # two answers of at most 1024 tokens
    assert "to be sent" in err
    assert "as fast as" not in err
    assert asked.bodies == []
    assert names(tmp_path) == ["in.jsonl"]
    in_process(source, tmp_path / "out.jsonl", url=[standin.url])
    capfd.readouterr()
    in_process(source, tmp_path / "out.jsonl", **options)
    again = capfd.readouterr()
    assert again.out == ""  # there is no first request
    assert "time, as fast as the last run" in again.err
    assert len(asked.bodies) == 2


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_stream_is_spooled(name: str, standin: ChatServer, tmp_path: Path) -> None:
    lines = json.dumps(row("a")) + "\n" + json.dumps(row("b")) + "\n"
    done = batch(name, "-", "--url", standin.url, input=lines)
    assert done.returncode == 0, done.stderr
    assert texts(read(done.stdout.encode())) == {"a": "answer to a", "b": "answer to b"}
    script = f"{NEMOTRON} batch <(printf '%s' '{lines}') out.jsonl --url {standin.url}"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, capture_output=True)
    assert results(tmp_path / "out.jsonl").keys() == {"a", "b"}


def test_a_manifest_that_a_killed_run_left_is_completed(
    standin: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    source, out = write(tmp_path / "in.jsonl", row("a"), row("b")), tmp_path / "out.jsonl"
    in_process(source, out, url=[standin.url])
    whole = manifest(out)
    killed = whole | {"finished": None, "failed": None}
    out.with_name("out.jsonl.manifest.json").write_text(json.dumps(killed))
    in_process(source, out, url=[standin.url])
    assert manifest(out) == whole
    assert asked.questions == ["a", "b"]


def test_the_manifest_forgets_a_failed_row_that_is_removed(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", row("a"), row("bad")), tmp_path / "out.jsonl"
    answer = Asked(lambda body, _: refused(400) if "bad" in str(body) else echo(body))
    with ChatServer(answer) as server:
        assert in_process(source, out, url=[server.url]).failed == 1
        in_process(write(source, row("a")), out, url=[server.url])
    content = manifest(out)
    assert (content["rows"], content["finished"], content["failed"]) == (1, 1, 0)


def test_a_dry_run_shows_what_the_values_of_a_table_are_sent_as(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.csv"
    source.write_text("prompt,max_tokens,stop,n\nOne,7,8,2\n")
    options: dict[str, Any] = {"url": ["http://127.0.0.1:1"], "dry_run": True}
    in_process(source, tmp_path / "out.jsonl", **options)
    body = json.loads(capfd.readouterr().out)["body"]
    assert (body["prompt"], body["max_tokens"], body["stop"], body["n"]) == ("One", 7, "8", 2)
