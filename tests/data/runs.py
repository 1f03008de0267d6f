"""Runs of `nemotron batch`, and stand-in servers for them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemotron_data.batch.job import Job
from nemotron_data.batch.work import Counts
from nemotron_data.options import BatchOptions
from tests.standins.chat_server import ChatServer, Reply, said
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import WAIT, until

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
ASK = [{"role": "user", "content": "Hello"}]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
    def holds() -> bool:
        assert process is None or process.poll() is None
        return condition()

    until(holds, poll_seconds=0.01)


def batch(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [NEMOTRON, "batch", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT, check=False, **options
    )


def write_rows(path: Path, answers: Sequence[ExactAnswer], copies: int = 1) -> dict[str, str]:
    """Write every question as an OpenAI line or a plain line, and return the expected texts."""
    expected = {}
    with path.open("w") as file:
        for copy in range(copies):
            for number, exact in enumerate(answers):
                name = f"{copy}/{number}"
                body = {"messages": [message.as_dict() for message in exact.question.messages]}
                request = {"method": "POST", "url": "/v1/chat/completions", "body": body}
                row = {"custom_id": name} | (request if number % 2 else body)
                file.write(json.dumps(row) + "\n")
                expected[name] = exact.question.answer
    return expected


def read(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def texts(results: list[dict[str, Any]]) -> dict[str, str]:
    """Return the text of each result by its custom_id, which must be there once."""
    text_by_id = {
        result["custom_id"]: result["response"]["body"]["choices"][0]["message"]["content"]
        for result in results
    }
    assert len(text_by_id) == len(results)
    assert all(result["error"] is None for result in results)
    return text_by_id


def in_process(*arguments: object, **options: Any) -> Counts:
    """Run a batch in this process."""
    source, output = map(str, arguments)
    batch_options = BatchOptions(source=source, output=output, **options)
    return Job(batch_options, batch_options.defaults).run()


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@contextmanager
def many_rows(
    folder: Path, answer: Callable[[dict[str, Any], int], Reply], rows: int = 200
) -> Iterator[tuple[ChatServer, list[object]]]:
    """Yield a stand-in server, and the arguments that send it `rows` rows."""
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
    results = read((folder / "out.jsonl").read_bytes())
    assert texts(results) == {f"r{n}": f"answer to {n}" for n in range(rows)}


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
