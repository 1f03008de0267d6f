"""Answers for judges, in the forms that their programs read, with a stand-in for the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.errors import NemotronError
from nemotron_evaluate.evaluation.result import Report
from nemotron_evaluate.evaluation.run import run
from nemotron_evaluate.options import EvalOptions
from tests.standins.chat_server import ChatServer, Reply, said

ENGINE = {"id": "org/tiny", "engine": "a" * 64}
ARENA = [{"question_id": "u1", "turns": [{"content": "one"}]},
         {"question_id": "u2", "turns": [{"content": "two"}]}]  # fmt: skip
ALPACA = [{"instruction": "x", "dataset": "d"}, {"instruction": "y", "dataset": "d"}]


def echo(body: dict[str, Any], _inside: int) -> Reply:
    """All messages of the conversation, and the temperature."""
    said_before = "+".join(message["content"] for message in body["messages"])
    return said(f"({said_before})@{body['temperature']}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("arena-hard", ARENA), ("alpaca-eval", ALPACA)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluate(server: ChatServer, folder: Path, data: Path | None, *names: str) -> Report:
    options = EvalOptions(suite="card", url=server.url, output=folder, data=data, only=[*names])
    return run(options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_judge_gets_its_own_form(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    names = ("arena-hard", "alpaca-eval")
    with ChatServer(echo, model=ENGINE) as server:
        report = evaluate(server, folder, data, *names)
        assert server.requests == 2 + 2
        evaluate(server, folder, data, *names)
        assert server.requests == 4  # all of it is there
    assert lines(folder / "arena-hard" / "org_tiny.jsonl") == [
        {
            "question_id": row["question_id"],
            "answer_id": f"org/tiny-{row['question_id']}",
            "model_id": "org/tiny",
            "choices": [{"index": 0, "turns": [{"content": f"({text})@0.0"}]}],
        }
        for row, text in zip(ARENA, ("one", "two"), strict=True)
    ]
    assert json.loads((folder / "alpaca-eval" / "model_outputs.json").read_text()) == [
        {"instruction": "x", "output": "(x)@0.0", "generator": "org/tiny"},
        {"instruction": "y", "output": "(y)@0.0", "generator": "org/tiny"},
    ]
    for name in names:
        assert report.benchmarks[name].scores == {}
        assert report.benchmarks[name].remarks[0].startswith("answered; needs the judge; ")


def test_without_data_the_others_run(tmp_path: Path) -> None:
    with ChatServer(echo, model=ENGINE) as server:
        report = evaluate(server, tmp_path / "run", None, "arena-hard")
        assert server.requests == 0
    assert report.benchmarks["arena-hard"].remarks[0].startswith("not run, because there is no ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "put a JSONL file there with the columns question_id, turns"),
        ("", "there are no rows"),
        ("[]", "a row has no question_id, turns"),
        ('{"question_id": 1, "turns": [{"text": "x"}]}', "a question has another form"),
        ('{"question_id": 1, "turns": []}', "a question has no text"),
        ('{"question_id": 1, "turns": [{"content": 3}]}', "a question has no text"),
        ("{", "not JSONL"),
    ],
)
def test_wrong_questions(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "arena-hard.jsonl").write_text(text)
    with (
        ChatServer(echo, model=ENGINE) as server,
        pytest.raises(NemotronError, match=message),
    ):
        evaluate(server, tmp_path / "run", tmp_path, "arena-hard")
