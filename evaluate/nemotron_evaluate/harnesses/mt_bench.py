"""MT-Bench: NVIDIA's evaluator has the questions, and a judge rates the answers by its prompts.

The answers come from a batch for each turn. The evaluator then asks the judge, with the corrected
references, and keeps each rating, so judging that was stopped goes on with what is left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest, write_atomically
from nemotron_data.transport.protocol import api_key
from nemotron_evaluate.harnesses import answers
from nemotron_evaluate.harnesses.process import run_harness
from nemotron_evaluate.harnesses.setting import Harness, Judge, Setting
from nemotron_evaluate.server import Server
from nemotron_evaluate.suite.benchmark import Benchmark
from nemotron_evaluate.suite.items import Item
from nemotron_evaluate.writing import make_folder

NAME = "mt-bench"
JUDGE_KEYS = ("NEMOTRON_JUDGE_API_KEY", "OPENAI_API_KEY")
"""Environment variables with the judge's API key; the first one that is set is used."""
NO_KEY = "none"
"""Key for a judge without keys: the evaluator's client does not start without one."""
PROGRAM = Path(__file__).with_name("mt_bench_judging.py")
FASTCHAT = "mtbench_evaluator/fastchat"
"""The evaluator's folder of FastChat."""
CORRECTED = "gpt-4-0125-preview"
"""Name of the corrected references, after the model that wrote them."""
LOG, RESPONSES, JUDGEMENTS = "mt-bench.log", "responses", "judgements"
LONGEST_JUDGEMENT = 2048
"""Tokens; the evaluator's own default."""
RETRIES, RETRY_SECONDS = 6, 5
TURNS = {"turn 1": (1,), "turn 2": (2,), "both turns": (1, 2)}
"""The turns whose ratings a score has, by its metric."""
LOWEST, HIGHEST = 1, 10
"""The scale of ratings. The evaluator writes -1 for what it could not read."""


def check(benchmark: Benchmark, setting: Setting) -> None:
    """Raise `NemotronError` if the evaluator is missing or the judge does not answer."""
    setting.installed.check()
    _rows(benchmark, setting)
    unknown = [s.metric for s in benchmark.scores.values() if s.metric not in TURNS]
    if unknown:
        raise NemotronError(
            f"MT-Bench has no {unknown[0]}",
            where=setting.name,
            remedy=f"its metrics are {', '.join(TURNS)}",
        )
    if setting.judge is not None:
        with Server(setting.judge.url, JUDGE_KEYS) as server:
            question = {"role": "user", "content": "Answer with the word yes."}
            server.chat({"model": setting.judge.model, "messages": [question], "max_tokens": 8})


def run(benchmark: Benchmark, setting: Setting) -> list[Item]:
    """Ask the questions, and with a judge return the items. See `Harness`."""
    rows = _rows(benchmark, setting)
    file = answers.ask(benchmark, setting, rows)
    if setting.judge is None:
        return []
    path = _judge(benchmark, setting, setting.judge, file)
    ratings = _ratings(path)
    items = [_item(benchmark, row, ratings) for row in rows]
    for key, score in benchmark.scores.items():
        if not any(item.values[key] for item in items):
            raise NemotronError(
                f"no rating of {score.metric} could be read",
                where=path,
                remedy="see there what the judge answered; the same command asks it again",
            )
    return items


HARNESS = Harness(NAME, check, run, judges=True)


def _rows(benchmark: Benchmark, setting: Setting) -> list[dict[str, Any]]:
    if benchmark.data is None or benchmark.data.package is None:
        raise NemotronError(
            "MT-Bench has no questions", where=setting.name, remedy="give it the card's data"
        )
    return answers.questions(benchmark, setting.packaged(benchmark.data.package))


def _judge(benchmark: Benchmark, setting: Setting, judge: Judge, file: Path) -> Path:
    """Have the evaluator ask the judge, and return its file of ratings."""
    responses = setting.folder / RESPONSES  # the evaluator reads all that is there
    make_folder(responses)
    write_atomically(responses / file.name, file.read_text(encoding="utf-8"))
    # As the evaluator names it.
    name = f"{judge.model.strip('/').replace('/', '--')}_single.jsonl"
    path = setting.folder / JUDGEMENTS / name
    if path.exists():
        write_atomically(path, (line + "\n" for line in _whole_lines(path)))
    arguments: dict[str, object] = {
        "--responses_dir": responses,
        "--output_path": setting.folder,
        "--judge-model": judge.model,
        "--judge_url": f"{judge.url}/v1",
        "--reference-model": CORRECTED,
        "--judge_max_tokens": LONGEST_JUDGEMENT,
        "--judge_max_retries": RETRIES,
        "--judge_request_timeout": RETRY_SECONDS,
        "--parallel": setting.concurrency,
    }
    if benchmark.limit is not None:
        arguments["--first-n"] = benchmark.limit
    run_harness(
        [
            *(str(setting.installed.program("python")), "-I", "-X", "utf8", str(PROGRAM)),
            str(setting.packaged(FASTCHAT)),
            *(str(word) for pair in arguments.items() for word in pair),
        ],
        folder=setting.folder,
        log=setting.folder / LOG,
        environment={"OPENAI_API_KEY": api_key(JUDGE_KEYS) or NO_KEY},
        telling=("Retry attempt",),
    )
    return path


def _whole_lines(path: Path) -> list[str]:
    """Return the lines that were not cut off by a stop, at which the evaluator would end."""
    text = path.read_text(encoding="utf-8")
    return text.split("\n")[:-1]


def _ratings(path: Path) -> dict[tuple[Any, int], float]:
    """Return the ratings by question and turn, without those that could not be read."""
    ratings = {}
    try:
        for line in _whole_lines(path):
            entry = json.loads(line)
            if LOWEST <= (rating := float(entry["score"])) <= HIGHEST:
                ratings[entry["question_id"], int(entry["turn"])] = rating
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise NemotronError(
            f"the evaluator left no readable ratings: {error!r}",
            where=path,
            remedy="remove the file; the same command asks the judge again",
        ) from error
    return ratings


def _item(benchmark: Benchmark, row: dict[str, Any], ratings: dict[tuple[Any, int], float]) -> Item:
    number = row["question_id"]
    return Item(
        name=f"{benchmark.task}/{number}",
        content=text_digest(json.dumps(row["turns"])),
        values={
            key: tuple(
                ratings[number, turn] for turn in TURNS[score.metric] if (number, turn) in ratings
            )
            for key, score in benchmark.scores.items()
        },
    )
