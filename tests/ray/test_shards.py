"""`--runner ray`: each shard is a task that goes on where it was, whatever its worker meets."""

from __future__ import annotations

import re
import signal
import threading
from pathlib import Path
from typing import Any

import yaml

from tests.data.runs import Asked, echo, lines_in, read, row, texts, write
from tests.data.synthesis import recipe, reply, topics
from tests.ray.cluster import Cluster
from tests.standins.chat_server import ChatServer, Reply, refused
from tests.waiting import until

SHARDS = 4
ROWS = [row(f"r{number}") for number in range(200)]
ECHOES = {f"r{number}": f"answer to r{number}" for number in range(200)}
TASK = "_batch_shard"


def options(standin: ChatServer) -> list[str]:
    return ["--url", standin.url, "--runner", "ray", "--shards", str(SHARDS)]


def shards(folder: Path, name: str = "out-*-of-00004.jsonl") -> list[Path]:
    return sorted(folder.glob(name))


def results(folder: Path) -> dict[str, str]:
    """Return the answers of all shards, of which each must be there once."""
    return texts([line for path in shards(folder) for line in read(path.read_bytes())])


def lines(folder: Path) -> int:
    return sum(map(lines_in, shards(folder)))


class Gate:
    """Answers at once, until so many were asked; then the others wait until the gate opens."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._lock = threading.Lock()
        self.opened = threading.Event()

    def __call__(self, body: dict[str, Any], _inside: int) -> Reply:
        with self._lock:
            self._free -= 1
            waits = self._free < 0
        if waits:
            self.opened.wait()
        return echo(body)


def test_a_batch_whose_worker_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *ROWS)
    gate = Gate(60)
    asked = Asked(gate)
    with ChatServer(asked) as standin:
        command = ["batch", source, tmp_path / "out.jsonl", *options(standin)]
        process = cluster.start(*command)
        until(lambda: lines(tmp_path) == 60)  # all that may be answered, and the gate is closed
        before = cluster.tasks(TASK)
        assert len(before) == 2
        before[0].kill()
        until(lambda: len({task.pid for task in cluster.tasks(TASK)} - {before[0].pid}) == 2)
        gate.opened.set()
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
        assert "4 of 4 have ended" in stderr
        assert results(tmp_path) == ECHOES
        assert set(asked.questions) == ECHOES.keys()

        write(source, row("added"), *ROWS)
        done = cluster.run(*command)
        assert done.returncode == 0, done.stderr
        assert asked.questions == ["added"]
        assert results(tmp_path).keys() == ECHOES.keys() | {"added"}


def test_a_batch_that_is_interrupted(cluster: Cluster, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *ROWS)
    gate = Gate(60)
    asked = Asked(gate)
    with ChatServer(asked) as standin:
        command = ["batch", source, tmp_path / "out.jsonl", *options(standin)]
        process = cluster.start(*command)
        until(lambda: lines(tmp_path) == 60)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
        assert process.returncode == 130, stderr
        assert re.search(r"interrupted with [01] of 4 shards done", stderr)
        until(lambda: not cluster.tasks(TASK))
        assert len(results(tmp_path)) == 60
        gate.opened.set()
        done = cluster.run(*command)
        assert done.returncode == 0, done.stderr
        assert results(tmp_path) == ECHOES


def test_rows_and_shards_that_fail(cluster: Cluster, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _inside: int) -> Reply:
        question = body["messages"][-1]["content"]
        return refused(400, f"no {question}") if question == "r7" else echo(body)

    source = write(tmp_path / "in.jsonl", *ROWS)
    with ChatServer(answer) as standin:
        command = ["batch", source, tmp_path / "out.jsonl", *options(standin)]
        done = cluster.run(*command)
        assert done.returncode == 1
        assert "1 of 200 rows failed" in done.stderr
        assert "out-*-of-00004.jsonl.errors.jsonl" in done.stderr
        (errors,) = shards(tmp_path, "*.errors.jsonl")
        assert [line["custom_id"] for line in read(errors.read_bytes())] == ["r7"]
        changed = cluster.run(*command, "--max-tokens", 5)
        assert changed.returncode == 1
        assert "4 of 4 shards failed: the output was begun otherwise" in changed.stderr


def test_a_recipe(cluster: Cluster, tmp_path: Path) -> None:
    topics(tmp_path, *(f"t{number}" for number in range(20)))
    asked = Asked(reply)
    with ChatServer(asked) as standin:
        steps = {
            "topics": {"rows": "topics.jsonl"},
            "texts": {"rows": "topics", "prompt": "{{ topic }}"},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(standin.url, steps), sort_keys=False))
        command = ["synthesize", path, tmp_path / "out", "--runner", "ray", "--shards", "2"]
        done = cluster.run(*command)
        assert done.returncode == 0, done.stderr
        found = [
            line["topic"]
            for folder in shards(tmp_path, "out-*-of-00002")
            for line in read((folder / "out.jsonl").read_bytes())
        ]
        assert sorted(found) == sorted(f"t{number}" for number in range(20))
        assert len(asked.questions) == 20
        assert cluster.run(*command).returncode == 0
        assert asked.questions == []
