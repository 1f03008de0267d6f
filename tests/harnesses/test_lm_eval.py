"""`nemotron eval` with lm-eval on the real stack, over questions whose answers the model knows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_convert.convert import Format, Options, convert
from nemotron_convert.shards import Parallel
from nemotron_core.errors import NemotronError
from nemotron_evaluate.evaluation.result import Report
from nemotron_evaluate.evaluation.run import run
from nemotron_evaluate.options import EvalOptions
from tests.gateway.process import Running
from tests.standins.chat_server import ChatServer, Reply, refused
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.nemo_file import NEMO

TEMPLATE = "<extra_id_0>System\n\n<extra_id_1>User\n{{question}}\n<extra_id_1>Assistant\n"
GENERATED = {"until": [], "max_gen_toks": 200, "do_sample": False}
MODES: dict[str, dict[str, Any]] = {
    "remote tokenizer": {"concurrency": 1},
    "HF tokenizer, 4 at once": {"concurrency": 4, "tokenizer": True},
    "HF tokenizer, batch 8": {"concurrency": 1, "batch": 8, "tokenizer": True},
}


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    convert(NEMO, folder, Options(Parallel(1, 1), Format.HF))
    return folder


@pytest.fixture(scope="session")
def known(answers: list[ExactAnswer]) -> list[tuple[str, str]]:
    """Single questions and their exact answers."""
    questions = [exact.question for exact in answers]
    return [(q.messages[0].content, q.answer) for q in questions if len(q.messages) == 1]


@pytest.fixture
def suite(known: list[tuple[str, str]], tmp_path: Path) -> Path:
    """Generation over chat and completions, and a choice among four by log-likelihood."""
    rng = random.Random(1)
    wrong = [answer for _, answer in known]
    generated, chosen = [], []
    for question, answer in known[:40]:
        generated.append({"question": question, "answer": answer})
    for question, answer in known[:24]:
        choices = rng.sample([other for other in wrong if other != answer], 3)
        gold = rng.randrange(4)
        choices.insert(gold, answer)
        chosen.append({"question": question, "choices": choices, "gold": gold})
    write_rows(tmp_path / "gen.jsonl", generated)
    write_rows(tmp_path / "mc.jsonl", chosen)
    # Each gold is wrong for three questions of four.
    shuffled = [row | {"gold": (row["gold"] + number % 4) % 4} for number, row in enumerate(chosen)]
    write_rows(tmp_path / "shuffled.jsonl", shuffled)
    generate = {"output_type": "generate_until", "doc_to_target": "{{answer}}",
                "generation_kwargs": GENERATED}  # fmt: skip
    choose = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold",
              "target_delimiter": "", "doc_to_text": TEMPLATE}  # fmt: skip
    write_task(tmp_path, "chat", "gen", "exact_match", generate | {"doc_to_text": "{{question}}"})
    completed = generate | {"doc_to_text": TEMPLATE, "doc_to_target": "{{answer}}\n"}
    write_task(tmp_path, "completed", "gen", "exact_match", completed)
    write_task(tmp_path, "chosen", "mc", "acc", choose)
    write_task(tmp_path, "shuffled", "shuffled", "acc", choose)
    benchmarks = {
        name: {
            "title": name,
            "harness": "lm-eval",
            "task": f"{name}.yaml",
            "version": "1.0",
            "endpoint": endpoint,
            "scores": {"accuracy": {"metric": metric, "card": card}},
        }
        for name, endpoint, metric, card in (
            ("chat", "chat", "exact_match", 90),
            ("completed", "completions", "exact_match", 99),
            ("chosen", "log-likelihood", "acc", 99),
            ("shuffled", "log-likelihood", "acc", 100),
        )
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"benchmarks": benchmarks}, sort_keys=False))
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(folder: Path, name: str, rows: str, metric: str, settings: dict[str, Any]) -> None:
    task = {
        "task": f"tiny_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{rows}.jsonl"}},
        "test_split": "test",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | settings))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is fetched: the hub is where nobody listens."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield


def value(report: Report, name: str) -> float:
    (score,) = report.benchmarks[name].scores.values()
    return score.estimate.value


@pytest.mark.parametrize("mode", MODES)
def test_by_log_likelihood(
    mode: str, gateway: Running, suite: Path, tokenizer_folder: Path, environments: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    names = ["chosen", "shuffled"] if mode == "remote tokenizer" else ["chosen"]
    settings = MODES[mode] | ({"tokenizer": tokenizer_folder} if "tokenizer" in MODES[mode] else {})
    report = run(
        EvalOptions(suite=str(suite), url=gateway.url, output=tmp_path / "run",
                    only=names, environments=environments, **settings)
    )  # fmt: skip
    assert value(report, "chosen") == 100
    assert report.benchmarks["chosen"].items == 24
    if "shuffled" not in names:
        return
    assert value(report, "shuffled") == 25  # one question of four kept its gold
    assert report.benchmarks["shuffled"].scores["accuracy"].verdict == "below"


def test_by_generation(gateway: Running, suite: Path, environments: Path, tmp_path: Path) -> None:
    options = EvalOptions(
        suite=str(suite), url=gateway.url, output=tmp_path / "run",
        only=["chat", "completed"], environments=environments, concurrency=8,
    )  # fmt: skip
    report = run(options)
    assert (value(report, "chat"), value(report, "completed")) == (100, 100)
    assert report.benchmarks["chat"].items == 40
    assert report.benchmarks["chat"].scores["accuracy"].verdict == "above"
    assert report.server["engine"]
    asked = len(gateway.lines())
    run(options)
    assert {line["path"] for line in gateway.lines()[asked:]} <= {"/v1/models"}


def test_a_run_that_was_stopped_goes_on(
    gateway: Running, suite: Path, known: list[tuple[str, str]], environments: Path, tmp_path: Path
) -> None:
    """Answers that came before the failure are not asked for again."""
    exact = dict(known)
    identity = gateway.ask("GET", "/v1/models").json["data"][0]

    def failing(body: dict[str, Any], _inside: int) -> Reply:
        if server.requests > 25:
            return refused(400, "a failure")
        content = exact[body["messages"][-1]["content"]]
        choice = {"index": 0, "message": {"role": "assistant", "content": content}}
        return 200, {"choices": [choice | {"finish_reason": "stop"}]}, {}

    options = {"suite": str(suite), "output": tmp_path / "run", "only": ["chat"],
               "environments": environments, "concurrency": 1}  # fmt: skip
    with (
        ChatServer(failing, model=identity) as server,
        pytest.raises(NemotronError, match="a failure"),
    ):
        run(EvalOptions(url=server.url, **options))
    asked = len(gateway.lines())
    report = run(EvalOptions(url=gateway.url, **options))
    assert value(report, "chat") == 100
    lines = [line for line in gateway.lines()[asked:] if line["path"] == "/v1/chat/completions"]
    assert len(lines) == 40 - 25


def test_the_cards_tasks_over_local_rows(
    gateway: Running, environments: Path, tmp_path: Path
) -> None:
    """The harness's own tasks, with rows in the form of the real sets and no hub."""
    data = tmp_path / "data"
    data.mkdir()
    gsm8k = [{"question": f"What is {n} + {n}?", "answer": f"It is #### {2 * n}"} for n in (2, 30)]
    write_rows(data / "gsm8k.jsonl", gsm8k)
    mmlu = [
        {"question": f"What is {n} + {n}?", "subject": subject, "answer": 1,
         "choices": [str(n), str(2 * n), "0", "1"]}
        for n, subject in ((2, "anatomy"), (3, "college_physics"), (4, "anatomy"))
    ]  # fmt: skip
    for name in ("mmlu", "mmlu-generative"):
        write_rows(data / f"{name}.jsonl", mmlu)
    asked = {"prompt": "Write about the sky without any comma.", "key": 1,
             "instruction_id_list": ["punctuation:no_comma", "detectable_format:json_format"],
             "kwargs": [{}, {}]}  # fmt: skip
    write_rows(data / "ifeval.jsonl", [asked, asked | {"key": 2}])
    options = EvalOptions(
        suite="card",
        url=gateway.url,
        output=tmp_path / "run",
        data=data,
        only=["ifeval", "gsm8k", "mmlu", "mmlu-generative"],
        environments=environments,
    )
    report = run(options)
    assert {name: result.items for name, result in report.benchmarks.items()} == {
        "ifeval": 2,
        "gsm8k": 2,
        "mmlu": 3,
        "mmlu-generative": 3,
    }
    instructions = report.benchmarks["ifeval"].scores["instruction"]
    assert instructions.count == 4
    assert all(
        0 <= score.estimate.value <= 100
        for result in report.benchmarks.values()
        for score in result.scores.values()
    )
