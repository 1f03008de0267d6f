"""TFEval's two F1 scores over a file of judged turns, beside numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.errors import NemotronError
from nemotron_evaluate.evaluation.result import Report
from nemotron_evaluate.evaluation.run import run
from nemotron_evaluate.options import EvalOptions
from tests.standins.chat_server import ChatServer, said

D, O = "distractor", "on-topic"  # noqa: E741
TURNS = [("a", D, D), ("a", O, O), ("a", O, O), ("b", D, O), ("b", O, O), (3, D, D), (3, O, D),
         ("d", O, O)]  # fmt: skip


def write(folder: Path, turns: list[tuple[Any, str, str]]) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [dict(zip(("conversation", "label", "prediction"), turn, strict=True)) for turn in turns]
    (folder / "tfeval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Report]:
    def start(data: Path, output: str = "run", **options: Any) -> Report:
        with ChatServer(lambda *_: said(""), model={"id": "tiny"}) as server:
            report = run(
                EvalOptions(suite="card", url=server.url, output=tmp_path / output, data=data,
                            only=["tfeval"], **options)
            )  # fmt: skip
            assert server.requests == 0
        return report

    return start


def test_both_scores(evaluate: Callable[..., Report], tmp_path: Path) -> None:
    report = evaluate(write(tmp_path / "data", TURNS))
    scores = report.benchmarks["tfeval"].scores
    # Distractors: 2 true positives, 1 false one, 1 missed. On topic: 4, 1 and 1.
    assert scores["distractor"].estimate.value == pytest.approx(100 * 4 / 6)
    assert scores["on-topic"].estimate.value == pytest.approx(100 * 8 / 10)
    for score in scores.values():
        estimate = score.estimate
        assert estimate.low is not None
        assert estimate.high is not None
        assert 0 <= estimate.low < estimate.value < estimate.high <= 100
        assert score.count == 4  # conversations
    assert scores["distractor"].card == 81.7


def test_two_files_of_the_same_turns(evaluate: Callable[..., Report], tmp_path: Path) -> None:
    evaluate(write(tmp_path / "data", TURNS))
    better = [(name, label, label) for name, label, _ in TURNS]
    report = evaluate(write(tmp_path / "more", better), "other", against=tmp_path / "run")
    distractor, on_topic = report.pairs
    assert (distractor.second, on_topic.second) == (100, 100)
    assert distractor.difference.value == pytest.approx(100 - 100 * 4 / 6)
    assert on_topic.difference.value == pytest.approx(20)
    assert distractor.items == 4
    other = [("a", O, O)] * 3 + TURNS[3:]
    with pytest.raises(NemotronError, match="1 of the runs' questions differ"):
        evaluate(write(tmp_path / "odd", other), "third", against=tmp_path / "run")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("a", "off", D)], "label is 'off' .*line 1.* write distractor or on-topic"),
        ([("a", D, D), ("a", O, "")], "prediction is '' .*line 2"),
        ([("a", D, D)], "no turn is on-topic, or was taken so"),
    ],
)
def test_wrong_files(
    turns: list[tuple[Any, str, str]], message: str, evaluate: Callable[..., Report], tmp_path: Path
) -> None:
    with pytest.raises(NemotronError, match=message):
        evaluate(write(tmp_path / "data", turns))
