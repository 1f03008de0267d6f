"""Answers for benchmarks that a judge scores: a batch for each turn, and the judge's own file.

What is judged with whose money is the user's decision. So this ends with the file of answers that
the benchmark's own program takes, which for MT-Bench can go on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.batch.accept import ANY
from nemotron_data.batch.job import Job
from nemotron_data.options import BatchOptions
from nemotron_evaluate.harnesses.lm_eval_data import read_rows
from nemotron_evaluate.harnesses.setting import Harness, Setting
from nemotron_evaluate.suite.benchmark import Benchmark, Data
from nemotron_evaluate.suite.items import Item

NAME = "answers"
MAX_TOKENS = 2048
"""Longest answer of a benchmark that does not say it."""
MT_BENCH_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""MT-Bench's sampling temperature by category; the others are greedy."""


@dataclass(frozen=True)
class Form:
    """The files of a judge's program."""

    turns: Callable[[dict[str, Any]], list[str]]
    """Return the user's messages of a row, in order."""
    write: Callable[[Path, str, list[dict[str, Any]], list[list[str]]], Path]
    """Write the answers (folder, model, rows, the turns' answers of each) and return the file."""


def _arena_turns(row: dict[str, Any]) -> list[str]:
    return [turn["content"] for turn in row["turns"]]


def _write_arena(
    folder: Path, model: str, rows: list[dict[str, Any]], answers: list[list[str]]
) -> Path:
    turns = [[{"content": answer} for answer in texts] for texts in answers]
    return _write_choices(folder, model, rows, turns)


def _write_mt_bench(
    folder: Path, model: str, rows: list[dict[str, Any]], answers: list[list[str]]
) -> Path:
    return _write_choices(folder, model, rows, answers)


def _write_choices(folder: Path, model: str, rows: list[dict[str, Any]], turns: list[Any]) -> Path:
    lines = [
        {
            "question_id": row["question_id"],
            "answer_id": f"{model}-{row['question_id']}",
            "model_id": model,
            "choices": [{"index": 0, "turns": row_turns}],
        }
        for row, row_turns in zip(rows, turns, strict=True)
    ]
    path = folder / f"{model.replace('/', '_')}.jsonl"
    write_atomically(path, (json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def _write_alpaca(
    folder: Path, model: str, rows: list[dict[str, Any]], answers: list[list[str]]
) -> Path:
    content = [
        {"instruction": row["instruction"], "output": texts[0], "generator": model}
        for row, texts in zip(rows, answers, strict=True)
    ]
    path = folder / "model_outputs.json"
    write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return path


FORMS = {
    "arena-hard-v0.1": Form(_arena_turns, _write_arena),
    "mt_bench": Form(lambda row: list(row["turns"]), _write_mt_bench),
    "alpaca_eval": Form(lambda row: [row["instruction"]], _write_alpaca),
}
"""Forms by the benchmark's task."""


def check(benchmark: Benchmark, setting: Setting) -> None:
    """Raise `NemotronError` if the questions are missing."""
    questions(benchmark, _path(setting))


def run(benchmark: Benchmark, setting: Setting) -> list[Item]:
    """Ask the questions and write the judge's file. There are no items, for nothing is scored."""
    ask(benchmark, setting, questions(benchmark, _path(setting)))
    return []


HARNESS = Harness(None, check, run, needs_data=True)


def _form(benchmark: Benchmark) -> Form:
    if benchmark.task not in FORMS:
        raise NemotronError(
            f"there is no form of answers {benchmark.task}",
            where=benchmark.title,
            remedy=f"the forms are {', '.join(FORMS)}",
        )
    return FORMS[benchmark.task]


def _path(setting: Setting) -> Path:
    if setting.data is None:
        raise AssertionError("a run without data has no such benchmark")
    return setting.data / f"{setting.name}.jsonl"


def ask(benchmark: Benchmark, setting: Setting, rows: list[dict[str, Any]]) -> Path:
    """Ask the questions of the rows, turn by turn, and return the file of the answers.

    What an earlier run has an answer to is not asked again. Raises `NemotronError` if a question
    has no answer.
    """
    form = _form(benchmark)
    asked = [form.turns(row) for row in rows]
    answers: list[list[str]] = [[] for _ in rows]
    for turn in range(max(map(len, asked))):
        numbers = [number for number, texts in enumerate(asked) if turn < len(texts)]
        requests = [
            _request(number, asked[number][: turn + 1], answers[number], rows[number])
            for number in numbers
        ]
        for number, answer in zip(numbers, _batch(benchmark, setting, turn, requests), strict=True):
            answers[number].append(answer)
    return form.write(setting.folder, setting.model, rows, answers)


def questions(benchmark: Benchmark, path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of questions, as many as the benchmark's limit allows.

    Raises `NemotronError` if the file is missing or has another form.
    """
    form = _form(benchmark)
    rows = read_rows(path, benchmark.data or Data(columns=()))
    for number, row in enumerate(rows, 1):
        try:
            texts = form.turns(row)
        except (LookupError, TypeError) as error:
            where = f"{path}, line {number}"
            raise NemotronError("a question has another form", where=where) from error
        if not texts or not all(isinstance(text, str) for text in texts):
            raise NemotronError("a question has no text", where=f"{path}, line {number}")
    return rows[: benchmark.limit]


def _request(
    number: int, questions: list[str], answers: list[str], row: dict[str, Any]
) -> dict[str, Any]:
    messages = []
    for turn, question in enumerate(questions):
        messages.append({"role": "user", "content": question})
        if turn < len(answers):
            messages.append({"role": "assistant", "content": answers[turn]})
    temperature = MT_BENCH_TEMPERATURES.get(str(row.get("category")), 0.0)
    body = {"messages": messages, "temperature": temperature}
    return {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}


def _batch(
    benchmark: Benchmark, setting: Setting, turn: int, requests: list[dict[str, Any]]
) -> list[str]:
    """Return the answers of one turn."""
    source = setting.folder / f"turn-{turn + 1}.rows.jsonl"
    output = setting.folder / f"turn-{turn + 1}.answers.jsonl"
    write_atomically(source, (json.dumps(request) + "\n" for request in requests))
    options = BatchOptions(
        source=str(source),
        output=str(output),
        url=[setting.url],
        accept=[ANY],
        ordered=True,
        concurrency=setting.concurrency,
    )
    defaults: dict[str, str | int] = {
        "model": setting.model,
        "max_tokens": benchmark.max_tokens or MAX_TOKENS,
    }
    counts = Job(options, defaults, title=f"{benchmark.title}, turn {turn + 1}").run()
    if counts.failed:
        raise NemotronError(
            f"{counts.failed} of {len(requests)} questions have no answer",
            where=output,
            remedy="their reasons lie beside it; the same command tries them again",
        )
    with output.open(encoding="utf-8") as lines:
        bodies = [json.loads(line)["response"]["body"] for line in lines]
    return [str(body["choices"][0]["message"]["content"] or "") for body in bodies]
