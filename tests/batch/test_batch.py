"""The verb `batch` on the real server, and against servers that misbehave."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nemotron_build.profile import Profile
from nemotron_build.server import TritonServer
from tests.standins.chat_server import ChatServer, Reply, refused, said
from tests.tiny_nemotron.answers import ExactAnswer

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
WAIT = 240
ASK = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def url(server: TritonServer) -> str:
    return f"grpc://{server.endpoints.address}:{server.endpoints.grpc}"


@pytest.fixture(scope="session")
def gateway_url(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ports = tmp_path_factory.mktemp("gateway") / "ports.json"
    triton = f"{server.endpoints.address}:{server.endpoints.grpc}"
    command = [NEMOTRON, "gateway", "--triton", triton, "--port", "0", "--port-file", str(ports)]
    process = subprocess.Popen([*command, "--no-access-log"])
    try:
        wait_for(ports.exists, process)
        port = json.loads(ports.read_text())["gateway"]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def batch(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [NEMOTRON, "batch", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT, check=False, **options
    )


def write_rows(path: Path, answers: Sequence[ExactAnswer], copies: int = 1) -> dict[str, str]:
    """Every question as an OpenAI line or a plain one; the text that each must get."""
    expected = {}
    with path.open("w") as file:
        for copy in range(copies):
            for number, one in enumerate(answers):
                name = f"{copy}/{number}"
                body = {"messages": [message.as_dict() for message in one.question.messages]}
                request = {"method": "POST", "url": "/v1/chat/completions", "body": body}
                row = {"custom_id": name} | (request if number % 2 else body)
                file.write(json.dumps(row) + "\n")
                expected[name] = one.question.answer
    return expected


def read(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def texts(results: list[dict[str, Any]]) -> dict[str, str]:
    """By id; and each id is there once."""
    found = {
        one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"]
        for one in results
    }
    assert len(found) == len(results)
    assert all(one["error"] is None for one in results)
    return found


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_known_answers_in_order_with_a_manifest(
    url: str, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    expected = write_rows(tmp_path / "in.jsonl", answers)
    out = tmp_path / "out.jsonl"
    done = batch(tmp_path / "in.jsonl", out, "--url", url, "--ordered")
    assert done.returncode == 0, done.stderr
    results = read(out.read_bytes())
    assert list(texts(results).items()) == list(expected.items())
    assert results[0].keys() == {"id", "custom_id", "response", "error"}
    assert results[0]["response"].keys() == {"status_code", "request_id", "body"}
    assert results[0]["response"]["body"]["usage"]["completion_tokens"] == len(answers[0].token_ids)
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["rows"] == manifest["finished"] == len(answers)
    assert all(len(manifest["server"][name]) == 64 for name in ("engine", "checkpoint", "template"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "out.jsonl",
        "out.jsonl.manifest.json",
    ]
    before = out.read_bytes()
    again = batch(tmp_path / "in.jsonl", out, "--url", "grpc://127.0.0.1:1", "--ordered")
    assert again.returncode == 0, again.stderr  # nothing is left to ask
    assert out.read_bytes() == before


def test_the_gateway_gives_the_same_rows_also_through_pipes_and_gzip(
    url: str, gateway_url: str, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    write_rows(source, answers[::8])
    extra = [
        {"prompt": "Hello", "max_tokens": 5, "custom_id": "prompt"},
        {"prompt": "Hello", "max_tokens": 5, "temperature": 2.0, "custom_id": "sampled"},
        {"messages": ASK, "n": 2, "temperature": 2.0, "max_tokens": 5, "custom_id": "two"},
    ]
    with source.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in extra)
    source.with_suffix(".jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    packed = tmp_path / "out.jsonl.gz"
    direct = batch(f"{source}.gz", packed, "--url", url)
    assert direct.returncode == 0, direct.stderr
    piped = batch("-", "-", "--url", gateway_url, input=source.read_text())
    assert piped.returncode == 0, piped.stderr

    def what(results: list[dict[str, Any]]) -> dict[str, Any]:
        keys = ("choices", "usage", "model", "object")
        bodies = {one["custom_id"]: one["response"]["body"] for one in results}
        assert len(bodies) == len(results)
        return {name: [body[key] for key in keys] for name, body in bodies.items()}

    found = what(read(gzip.decompress(packed.read_bytes())))
    assert found == what(read(piped.stdout.encode()))
    assert len(found) == len(answers[::8]) + len(extra)
    assert len(found["two"][0]) == 2


def test_bad_rows_are_set_apart_and_asked_again(url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    errors = tmp_path / "out.jsonl.errors.jsonl"
    good = {"custom_id": "good", "messages": ASK, "max_tokens": 3}
    rows = [
        good,
        {"custom_id": "role", "messages": [{"role": "tool", "content": "x"}]},
        {"custom_id": "long", "messages": ASK, "max_tokens": 5000},
        {"custom_id": "key", "messages": ASK, "colour": 1},
        {"custom_id": "model", "messages": ASK, "model": "other"},
        good,
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "nonsense\n")
    for _ in range(2):
        done = batch(source, out, "--url", url)
        assert done.returncode == 1
        assert "6 of 7 rows failed" in done.stderr
        assert len(texts(read(out.read_bytes()))) == 1
        failed = {one["error"]["line"]: one for one in read(errors.read_bytes())}
        assert sorted(failed) == [2, 3, 4, 5, 6, 7]
        assert "role" in failed[2]["error"]["message"]
        assert "4096" in failed[3]["error"]["message"]
        assert "colour" in failed[4]["error"]["message"]
        assert "'other'" in failed[5]["error"]["message"]
        assert "lines 1 and 6" in failed[6]["error"]["message"]
        assert failed[7]["custom_id"] is None
        assert all(one["error"]["remedy"] for one in failed.values())
    piped = batch(source, "-", "--url", url)
    assert piped.returncode == 1
    assert sum(one["error"] is None for one in read(piped.stdout.encode())) == 1
    assert len(read(piped.stdout.encode())) == 7


def test_another_input_or_setting_is_refused(url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"messages": ASK, "max_tokens": 2}) + "\n")
    assert batch(source, out, "--url", url).returncode == 0
    before = out.read_bytes()
    for options, what in (
        (["--seed", "1"], "--seed was 0 and is 1"),
        (["--max-tokens", "9"], "max_tokens was 1024 and is 9"),
    ):
        done = batch(source, out, "--url", url, *options)
        assert done.returncode == 1
        assert what in done.stderr
    with source.open("a") as file:
        file.write(json.dumps({"messages": ASK, "max_tokens": 3}) + "\n")
    assert "the input's SHA-256" in batch(source, out, "--url", url).stderr
    (tmp_path / "out.jsonl.manifest.json").unlink()
    assert "has no manifest" in batch(source, out, "--url", url).stderr
    assert out.read_bytes() == before


def test_another_engine_is_refused(url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"custom_id": "a", "messages": ASK, "max_tokens": 2}, {"custom_id": "b"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert batch(source, out, "--url", url).returncode == 1
    manifest = tmp_path / "out.jsonl.manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"server": told["server"] | {"engine": "another"}}))
    done = batch(source, out, "--url", url)
    assert done.returncode == 1
    assert 'server\'s engine was "another"' in done.stderr


def test_a_client_killed_again_and_again(
    url: str, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    expected = write_rows(source, answers)
    command = [NEMOTRON, "batch", str(source), str(out), "--url", url]
    generator = random.Random(3)
    for rows in sorted(generator.sample(range(5, len(expected) - 60), 5)):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for(lambda rows=rows: lines_in(out) >= rows, process)  # type: ignore[misc]
        process.kill()
        process.wait()
        if generator.random() < 0.5:  # what a power cut can leave
            os.truncate(out, out.stat().st_size - generator.randrange(1, 100))
    done = batch(source, out, "--url", url)
    assert done.returncode == 0, done.stderr
    assert texts(read(out.read_bytes())) == expected


def test_a_server_killed_and_started_again(
    engine_bf16: Path, cpu_profile: Profile, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    expected = write_rows(source, answers)
    with TritonServer(engine_bf16, cpu_profile) as server:
        ends = server.endpoints
        url = f"grpc://{ends.address}:{ends.grpc}"
        process = subprocess.Popen(
            [NEMOTRON, "batch", str(source), str(out), "--url", url], stderr=subprocess.PIPE
        )
        wait_for(lambda: lines_in(out) >= 100, process)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
    ports = cpu_profile.ports.model_copy(update={"grpc": ends.grpc})
    with TritonServer(engine_bf16, cpu_profile.model_copy(update={"ports": ports})):
        _, stderr = process.communicate(timeout=WAIT)
        assert process.returncode == 0, stderr
    assert b"waiting for the server" in stderr
    assert texts(read(out.read_bytes())) == expected


@contextmanager
def many_rows(
    folder: Path, answer: Callable[[dict[str, Any], int], Reply], rows: int = 200
) -> Iterator[tuple[ChatServer, list[object]]]:
    """A stand-in server, and the arguments to ask it so many rows."""
    source = folder / "in.jsonl"
    with source.open("w") as file:
        for number in range(rows):
            message = {"role": "user", "content": str(number)}
            file.write(json.dumps({"custom_id": f"r{number}", "messages": [message]}) + "\n")
    with ChatServer(answer) as standin:
        yield standin, [source, folder / "out.jsonl", "--url", standin.url]


def echo(body: dict[str, Any]) -> Reply:
    return said("answer to " + body["messages"][0]["content"])


def check_echoes(folder: Path, rows: int = 200) -> None:
    found = texts(read((folder / "out.jsonl").read_bytes()))
    assert found == {f"r{n}": f"answer to {n}" for n in range(rows)}


def test_a_storm_of_429(tmp_path: Path) -> None:
    """A server with room for six, which sends the rest away."""

    def answer(body: dict[str, Any], inside: int) -> Reply:
        if inside > 6:
            return refused(429, "busy", retry_after="0")
        time.sleep(0.005)
        return echo(body)

    with many_rows(tmp_path, answer) as (standin, arguments):
        done = batch(*arguments)
        assert done.returncode == 0, done.stderr
        assert standin.most_inside > 3
        assert standin.asked < 400  # it learns
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
    assert {one["custom_id"] for one in failed} == {"r7", "r8"}
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


def twenty_answers() -> tuple[Callable[[dict[str, Any], int], Reply], threading.Event]:
    """Answers the first twenty requests, the others when the event is set."""
    release = threading.Event()
    asked = itertools.count()

    def answer(body: dict[str, Any], _inside: int) -> Reply:
        if next(asked) >= 20:
            release.wait(WAIT)
        return echo(body)

    return answer, release


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_once_finishes_what_runs_and_goes_on_later(
    number: signal.Signals, tmp_path: Path
) -> None:
    answer, release = twenty_answers()
    with many_rows(tmp_path, answer) as (standin, arguments):
        command = [NEMOTRON, "batch", *map(str, arguments)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: lines_in(tmp_path / "out.jsonl") >= 20, process)
        process.send_signal(number)
        assert process.stderr is not None
        assert "finishing" in process.stderr.readline()
        release.set()
        stderr = process.stderr.read()
        process.stderr.close()
        assert process.wait(WAIT) == 130
        assert "run the same command again" in stderr
        done = lines_in(tmp_path / "out.jsonl")
        assert 20 < done < 200
        assert standin.asked == done  # nothing that ran was thrown away
        assert batch(*arguments).returncode == 0
        assert standin.asked == 200
    check_echoes(tmp_path)


def test_interrupted_twice_drops_what_runs(tmp_path: Path) -> None:
    answer, release = twenty_answers()
    with many_rows(tmp_path, answer) as (_standin, arguments):
        command = [NEMOTRON, "batch", *map(str, arguments)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: lines_in(tmp_path / "out.jsonl") >= 20, process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "finishing" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 130
        process.stderr.close()
        assert lines_in(tmp_path / "out.jsonl") == 20
        release.set()
        assert batch(*arguments).returncode == 0
    check_echoes(tmp_path)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_full_disk_loses_nothing(name: str, tmp_path: Path) -> None:
    """A real one: a file system of our own, first too small."""

    def answer(body: dict[str, Any], _inside: int) -> Reply:
        name = body["messages"][0]["content"]
        noise = random.Random(name).randbytes(700).hex()  # so that gzip needs its room too
        return said(f"answer to {name} {noise}")

    (tmp_path / "disk").mkdir()
    with many_rows(tmp_path, answer) as (_standin, (source, _out, *url)):
        run = f"{NEMOTRON} batch {source} disk/{name} {' '.join(map(str, url))}"
        script = f"""
            mount -t tmpfs -o size=64k none disk
            {run}; echo "first $?"
            mount -o remount,size=8m disk
            {run}; echo "second $?"; cp disk/{name} .
        """
        done = subprocess.run(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout == "first 1\nsecond 0\n", done.stderr
    assert "No space left on device" in done.stderr
    assert "run the same command again" in done.stderr
    data = (tmp_path / name).read_bytes()
    found = texts(read(gzip.decompress(data) if name.endswith(".gz") else data))
    assert {text.rpartition(" ")[0] for text in found.values()} == {
        f"answer to {n}" for n in range(200)
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jsonl", "out.jsonl"], "No such file"),
        (["in.jsonl", "no/such/out.jsonl"], "cannot write"),
        (["in.jsonl", "out.jsonl", "--url", "localhost:1424"], "not the URL of a server"),
        (["in.jsonl", "out.jsonl", "--url", "grpc://localhost"], "not the URL of a server"),
        (["in.jsonl", "-", "--ordered"], "cannot be sorted"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": ASK}) + "\n")
    done = batch(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
