"""The verb `batch` loses nothing when it is killed, interrupted or out of disk space."""

from __future__ import annotations

import gzip
import itertools
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_build.profile import Profile
from nemotron_serve.model_server import ModelServer
from tests.data.runs import (
    NEMOTRON,
    batch,
    check_echoes,
    echo,
    lines_in,
    many_rows,
    read,
    texts,
    wait_for,
    write_rows,
)
from tests.standins.chat_server import Reply, said
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import WAIT


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
    with ModelServer(engine_bf16, cpu_profile) as server:
        endpoints = server.endpoints
        url = f"grpc://{endpoints.address}:{endpoints.grpc}"
        process = subprocess.Popen(
            [NEMOTRON, "batch", str(source), str(out), "--url", url], stderr=subprocess.PIPE
        )
        wait_for(lambda: lines_in(out) >= 100, process)
        os.killpg(server.triton.process.pid, signal.SIGKILL)
        server.triton.process.wait()
    ports = cpu_profile.ports.model_copy(update={"grpc": endpoints.grpc})
    with ModelServer(engine_bf16, cpu_profile.model_copy(update={"ports": ports})):
        _, stderr = process.communicate(timeout=WAIT)
        assert process.returncode == 0, stderr
    assert b"waiting for the server" in stderr
    assert texts(read(out.read_bytes())) == expected


def twenty_answers() -> tuple[Callable[[dict[str, Any], int], Reply], threading.Event]:
    """Return a function that answers twenty requests at once and the others after the event."""
    release = threading.Event()
    requests = itertools.count()

    def answer(body: dict[str, Any], _inside: int) -> Reply:
        if next(requests) >= 20:
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
        assert standin.requests == done  # nothing that ran was thrown away
        assert batch(*arguments).returncode == 0
        assert standin.requests == 200
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
    """The disk is a real file system, which is too small at first."""

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
    results = read(gzip.decompress(data) if name.endswith(".gz") else data)
    assert {text.rpartition(" ")[0] for text in texts(results).values()} == {
        f"answer to {n}" for n in range(200)
    }
