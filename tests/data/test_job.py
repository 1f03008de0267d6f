"""Batches against small stand-in servers: what is asked, what is stored, and what is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import pytest
from pyarrow import parquet

from nemotron_core.errors import NemotronError
from nemotron_data.batch.opening import PROBES
from nemotron_data.rows import formats
from tests.data.runs import NEMOTRON, batch, echo, in_process, read, texts
from tests.standins.chat_server import ChatServer, Reply, refused, said
from tests.waiting import WAIT


class Asked:
    """An answer function that keeps what it was asked."""

    def __init__(
        self, answer: Callable[[dict[str, Any], int], Reply] = lambda b, _: echo(b)
    ) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, body: dict[str, Any], inside: int) -> Reply:
        with self._lock:
            self.bodies.append(body)
        return self._answer(body, inside)

    @property
    def questions(self) -> list[str]:
        """What was asked since the last call, sorted."""
        with self._lock:
            bodies, self.bodies = self.bodies, []
        return sorted(body["messages"][-1]["content"] for body in bodies)


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def server(asked: Asked) -> Iterator[ChatServer]:
    with ChatServer(asked) as server:
        yield server


def row(name: str, question: str | None = None, **other: Any) -> dict[str, Any]:
    return {"custom_id": name, "messages": [{"role": "user", "content": question or name}], **other}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def results(path: Path) -> dict[str, str]:
    return texts(read(path.read_bytes()))


def failures(folder: Path) -> dict[str, dict[str, Any]]:
    lines = read((folder / "out.jsonl.errors.jsonl").read_bytes())
    return {line["custom_id"]: line["error"] for line in lines}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def manifest(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.with_name(path.name + ".manifest.json").read_text())
    return content


def test_only_new_and_changed_rows_are_asked(
    server: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    urls = [server.url]
    in_process(write(source, row("a"), row("b"), row("c"), row("d")), out, url=urls)
    assert asked.questions == ["a", "b", "c", "d"]
    counts = in_process(write(source, row("e"), row("d"), row("b", "B"), row("a")), out, url=urls)
    assert (counts.finished, counts.failed) == (4, 0)
    assert asked.questions == ["B", "e"]
    expected = {name: f"answer to {text}" for name, text in zip("adbe", "adBe", strict=True)}
    assert results(out) == expected
    replaced = tmp_path / "out.jsonl.replaced.jsonl"
    assert results(replaced) == {"b": "answer to b", "c": "answer to c"}
    in_process(write(source, row("d"), row("a")), out, url=["http://none:1"])
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
    server: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    source, out = write(tmp_path / "in.jsonl", row("a"), row("b")), tmp_path / "out.jsonl"
    in_process(source, out, url=[server.url])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(source, row("x"), row("y"))
    with pytest.raises(NemotronError, match="none of the 2 results belongs to a row"):
        in_process(source, out, url=[server.url])
    before[source] = source.read_bytes()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert asked.questions == ["a", "b"]


def test_columns_come_back_and_are_not_sent(
    server: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", row("a", source="wiki", level=3))
    in_process(source, tmp_path / "out.jsonl", url=[server.url])
    assert asked.bodies[0].keys() == {"messages", "model", "max_tokens", "temperature", "seed"}
    (result,) = read((tmp_path / "out.jsonl").read_bytes())
    assert result["metadata"] == {"source": "wiki", "level": 3}


def test_a_seed_and_a_length_can_be_left_out(
    server: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", row("a"))
    options: dict[str, Any] = {"no_seed": True, "no_max_tokens": True, "url": [server.url]}
    in_process(source, tmp_path / "out.jsonl", **options)
    assert asked.bodies[0].keys() == {"messages", "model", "temperature"}


def test_one_bad_line_beside_good_ones(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "LONGEST_LINE", 1000)
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row("long", "x" * 1000)) + "\n" + json.dumps(row("a")) + "\n")
    counts = in_process(source, tmp_path / "out.jsonl", url=[server.url])
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
        with pytest.raises(NemotronError, match="no model 'nemotron-4-340b-instruct', but tiny"):
            in_process(source, out, url=[server.url])
        assert len(asked.bodies) <= 20
        out.with_name("out.jsonl.manifest.json").unlink()
        assert in_process(source, out, url=[server.url], model="tiny").finished == 50


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
    server: ChatServer, asked: Asked, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", row("a", "x" * 4000), row("b"), 7)
    options: dict[str, Any] = {"url": [server.url], "dry_run": True, "price_out": 1e6}
    in_process(source, tmp_path / "out.jsonl", **options)
    out, err = capfd.readouterr()
    assert json.loads(out)["body"]["messages"][0]["content"] == "x" * 4000
    assert "2,048.00" in err  # two answers of at most 1024 tokens
    assert "to be sent" in err
    assert asked.bodies == []
    assert names(tmp_path) == ["in.jsonl"]
    in_process(source, tmp_path / "out.jsonl", url=[server.url])
    capfd.readouterr()
    in_process(source, tmp_path / "out.jsonl", **options)
    assert capfd.readouterr().out == ""  # there is no first request
    assert len(asked.bodies) == 2


def test_results_as_parquet(server: ChatServer, asked: Asked, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    first = [row("b", level=1), row("a")]
    for rows in (first, first, [*first, row("c")]):
        in_process(write(source, *rows), out, url=[server.url], ordered=True)
        table = parquet.read_table(out).to_pylist()
        assert [line["custom_id"] for line in table] == [line["custom_id"] for line in rows]
    assert asked.questions == ["a", "b", "c"]
    assert table[0].pop("response").startswith('{"id": "x", ')
    assert table[0] == {
        "custom_id": "b",
        "choice": 0,
        "text": "answer to b",
        "finish_reason": "stop",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "metadata": '{"level": 1}',
    }


def test_results_as_a_folder_that_hugging_face_loads(server: ChatServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(25)))
    in_process(source, f"{tmp_path}/data/", url=[server.url], ordered=True, rows_per_file=10)
    assert names(tmp_path / "data" / "data") == [
        f"train-0000{number}-of-00003.parquet" for number in range(3)
    ]
    loaded = datasets.load_dataset(
        str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["text"] == [f"answer to {number}" for number in range(25)]
    card = (tmp_path / "data" / "README.md").read_text()
    assert "25 of 25 rows have an answer; 0 failed." in card
    assert "| max_tokens | `1024` |" in card
    assert "License" in card


def test_results_as_zstandard_are_read_by_hugging_face(server: ChatServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *(row(str(number)) for number in range(5)))
    in_process(source, tmp_path / "out.jsonl.zst", url=[server.url], ordered=True)
    loaded = datasets.load_dataset(
        "json",
        data_files=str(tmp_path / "out.jsonl.zst"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded["custom_id"] == [str(number) for number in range(5)]


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_stream_is_spooled(name: str, server: ChatServer, tmp_path: Path) -> None:
    lines = json.dumps(row("a")) + "\n" + json.dumps(row("b")) + "\n"
    done = batch(name, "-", "--url", server.url, input=lines)
    assert done.returncode == 0, done.stderr
    assert texts(read(done.stdout.encode())) == {"a": "answer to a", "b": "answer to b"}
    script = f"{NEMOTRON} batch <(printf '%s' '{lines}') out.jsonl --url {server.url}"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, capture_output=True)
    assert results(tmp_path / "out.jsonl").keys() == {"a", "b"}
