"""EleutherAI's lm-evaluation-harness: its settings, and what its results say of each item.

Answers are kept in the harness's own cache, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import yaml

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.transport.protocol import api_key
from nemotron_evaluate.harnesses.lm_eval_data import local_tasks
from nemotron_evaluate.harnesses.process import run_harness
from nemotron_evaluate.harnesses.setting import Harness, Setting
from nemotron_evaluate.suite.benchmark import Benchmark, Endpoint, Score
from nemotron_evaluate.suite.items import Item
from nemotron_evaluate.writing import writing

NAME = "lm-eval"
RETRIES = 6
"""Number of attempts for one request, between which the harness waits up to ten seconds."""
CONFIG, LOG, RESULTS, CACHE = "lm-eval.yaml", "lm-eval.log", "results", "answers"
MODELS = {
    Endpoint.CHAT: ("local-chat-completions", "chat/completions"),
    Endpoint.COMPLETIONS: ("local-completions", "completions"),
    Endpoint.LOG_LIKELIHOOD: ("local-completions", "completions"),
}
"""The harness's name of a kind of model, and the end of its URL."""
HASH_DIGITS = 16
"""Hexadecimal digits of the two hashes by which an item is known."""


def check(benchmark: Benchmark, setting: Setting) -> None:
    """Raise `NemotronError` if the harness or the data are missing."""
    setting.installed.check()
    _tasks(benchmark, setting)


def run(benchmark: Benchmark, setting: Setting) -> list[Item]:
    """Run the benchmark and return its items. See `Harness`."""
    summary, results = start(benchmark, setting, _tasks(benchmark, setting))
    return [
        item
        for task in summary["n-samples"]
        for item in scored_items(task, benchmark.scores, read_samples(task, results))
    ]


HARNESS = Harness(NAME, check, run)


def start(benchmark: Benchmark, setting: Setting, tasks: list[str]) -> tuple[dict[str, Any], Path]:
    """Have the harness ask the questions of the tasks, which are names or paths of files.

    Return its summary and the folder of its results. Raises `NemotronError` if it fails, or if the
    task is of another version than the benchmark's.
    """
    results = setting.folder / RESULTS
    if results.exists():
        with writing(results):
            shutil.rmtree(results)  # of a run that was stopped; its answers are in the cache
    config = setting.folder / CONFIG
    write_atomically(config, yaml.safe_dump(_config(benchmark, setting, tasks), sort_keys=False))
    run_harness(
        [str(setting.installed.program("lm_eval")), "run", "--config", str(config)],
        # A task's file names its data relative to itself.
        folder=setting.folder if benchmark.file is None else benchmark.file.parent,
        log=setting.folder / LOG,
        environment=_environment(setting),
        telling=("API request failed",),
    )
    summary = _summary(results)
    _check_versions(benchmark, summary, results)
    return summary, results


def _tasks(benchmark: Benchmark, setting: Setting) -> list[str]:
    """Return what the harness is asked to run: names, or paths of tasks' files."""
    if benchmark.file is not None or setting.data is None:
        return [benchmark.task]
    package = setting.installed.package("lm_eval")
    return local_tasks(setting.name, benchmark, setting.data, package, setting.folder)


def _config(benchmark: Benchmark, setting: Setting, tasks: list[str]) -> dict[str, Any]:
    model, path = MODELS[benchmark.endpoint]
    arguments: dict[str, Any] = {
        "model": setting.model,
        "base_url": f"{setting.url}/v1/{path}",
        "num_concurrent": setting.concurrency,
        "max_retries": RETRIES,
        "timeout": setting.timeout,
        "max_length": setting.context,
    }
    if benchmark.max_tokens is not None:
        arguments["max_gen_toks"] = benchmark.max_tokens
    if benchmark.endpoint is not Endpoint.LOG_LIKELIHOOD:
        arguments |= {"tokenizer_backend": "None", "tokenized_requests": False}
    elif setting.tokenizer is None:
        arguments |= {"tokenizer_backend": "remote"}
    else:
        arguments |= {"tokenizer_backend": "huggingface", "tokenizer": str(setting.tokenizer)}
    config = {
        "model": model,
        "model_args": arguments,
        "tasks": tasks,
        "num_fewshot": benchmark.shots,
        "limit": benchmark.limit,
        "output_path": str(setting.folder / RESULTS),
        "log_samples": True,
        "use_cache": str(setting.folder / CACHE),
        "apply_chat_template": benchmark.endpoint is Endpoint.CHAT,
    }
    if benchmark.endpoint is Endpoint.LOG_LIKELIHOOD:
        config["batch_size"] = setting.batch
    return {key: value for key, value in config.items() if value is not None}


def _environment(setting: Setting) -> dict[str, str]:
    environment = {
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONNOUSERSITE": "1",
        "OPENAI_API_KEY": api_key() or "",
    }
    if setting.data is not None:
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(setting.folder / "datasets"),
            "NLTK_DATA": str(setting.data / "nltk_data"),
        }
    return environment


def _summary(results: Path) -> dict[str, Any]:
    try:
        (path,) = results.glob("*/results_*.json")
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise NemotronError(
            "lm-eval left no results", where=results, remedy="its log says why"
        ) from error


def _check_versions(benchmark: Benchmark, summary: dict[str, Any], results: Path) -> None:
    if benchmark.version is None:
        return
    versions = {str(summary["versions"].get(task)) for task in summary["n-samples"]}
    if versions != {benchmark.version}:
        raise NemotronError(
            f"the task is of version {', '.join(sorted(versions))}, not {benchmark.version}",
            where=results,
            remedy="install the harness anew, or set the benchmark's version in the suite",
        )


def read_samples(task: str, results: Path) -> list[dict[str, Any]]:
    """Return what `--log_samples` writes of a task: one for each item and filter.

    Raises `NemotronError` if there is nothing.
    """
    paths = list(results.glob(f"*/samples_{task}_*.jsonl"))
    if len(paths) != 1:
        raise NemotronError(f"lm-eval left no items of {task}", where=results)
    with paths[0].open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def content(sample: dict[str, Any]) -> str:
    """Return the hashes by which an item is known: of its row and of its prompt."""
    return "-".join(sample[name][:HASH_DIGITS] for name in ("doc_hash", "prompt_hash"))


def scored_items(task: str, scores: dict[str, Score], samples: list[dict[str, Any]]) -> list[Item]:
    """Return the items of one task. Raises `NemotronError` if a score is not there."""
    values: dict[int, dict[str, tuple[float, ...]]] = {}
    contents: dict[int, str] = {}
    for sample in samples:
        number = int(sample["doc_id"])
        contents[number] = content(sample)
        for name, score in scores.items():
            if score.filter in {None, sample["filter"]} and score.metric in sample:
                values.setdefault(number, {})[name] = _values(sample[score.metric], score, task)
    for number in contents:
        missing = scores.keys() - values.get(number, {}).keys()
        if missing:
            wanted = [f"{scores[name].metric} ({scores[name].filter or 'any filter'})"
                      for name in sorted(missing)]  # fmt: skip
            raise NemotronError(
                f"item {number} of {task} has no {', '.join(wanted)}",
                where=task,
                remedy="correct metric and filter of the benchmark's scores",
            )
    return [
        Item(name=f"{task}/{number}", content=contents[number], values=values[number])
        for number in sorted(contents)
    ]


def _values(value: Any, score: Score, task: str) -> tuple[float, ...]:
    found = tuple(map(float, value)) if isinstance(value, list) else (float(value),)
    if not found or not all(map(math.isfinite, found)):
        raise NemotronError(f"{score.metric} is {value}, no number", where=task)
    return found
