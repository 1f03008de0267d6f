"""Benchmarks of programs: lm-eval asks for them, and the sandbox runs them.

lm-eval would run the model's code in its own process. So its task is taken without the scoring,
and each answer becomes a program with the task's tests, as the benchmark describes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
import yaml

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_evaluate.harnesses import lm_eval
from nemotron_evaluate.harnesses.lm_eval_data import OWN_KEYS, TASKS, read_rows
from nemotron_evaluate.harnesses.sandbox import check_sandbox, run_programs
from nemotron_evaluate.harnesses.setting import Harness, Setting
from nemotron_evaluate.suite.benchmark import Benchmark, Data
from nemotron_evaluate.suite.items import Item
from nemotron_evaluate.writing import make_folder

NAME = "lm-eval-code"
LEFT_OUT = ("filter_list", "metric_list", "unsafe_code", "include", "tag", *OWN_KEYS)
"""Keys of the harness's task that belong to its scoring or to data that are not used."""
FENCE = "```"
PYTHON = {"python", "python3", "py"}
"""Languages of a fence that begins anew; one that only closes has none."""
REPORT_EVERY = 100


def check(benchmark: Benchmark, setting: Setting) -> None:
    """Raise `NemotronError` if the harness, the data or the sandbox are missing."""
    setting.installed.check()
    _settings(benchmark, setting)
    _write_task(benchmark, setting)
    check_sandbox()


def run(benchmark: Benchmark, setting: Setting) -> list[Item]:
    """Run the benchmark and return its items. See `Harness`."""
    settings = _settings(benchmark, setting)
    summary, results = lm_eval.start(benchmark, setting, [_write_task(benchmark, setting)])
    (task,) = summary["n-samples"]
    samples = lm_eval.read_samples(task, results)
    programs = [program(settings, sample) for sample in samples]

    def report(done: int) -> None:
        if done % REPORT_EVERY == 0 or done == len(programs):
            typer.echo(f"ran {done} of {len(programs)} programs", err=True)

    (score,) = benchmark.scores
    return [
        Item(
            name=f"{task}/{sample['doc_id']}",
            content=lm_eval.content(sample),
            values={score: (float(passed),)},
        )
        for sample, passed in zip(samples, run_programs(programs, report), strict=True)
    ]


HARNESS = Harness(lm_eval.NAME, check, run)


def program(settings: Data, sample: dict[str, Any]) -> str:
    """Return the program of an answer: the benchmark's form with the row's columns and the code."""
    columns = {
        name: "\n".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in sample["doc"].items()
    }
    answer = fenced_code(sample["resps"][0][0])
    return (settings.program or "").format_map(columns | {"answer": answer})


def fenced_code(answer: str) -> str:
    r"""Return the code of an answer that goes on after an opened fence.

    If the answer opens a fence of its own, the code is what that one has.

    >>> fenced_code("    return 1\n```\nThat is all.")
    '    return 1\n'
    >>> fenced_code("Here it is:\n```python\ndef f():\n    return 1\n```\n")
    'def f():\n    return 1\n'
    """
    before, fence, rest = answer.partition(FENCE)
    language, line, body = rest.partition("\n")
    begins_anew = not before.strip() or (language.strip() in PYTHON and FENCE in body)
    if fence and line and begins_anew:
        return body.partition(FENCE)[0]
    return before


def _settings(benchmark: Benchmark, setting: Setting) -> Data:
    if benchmark.data is None or benchmark.data.program is None or len(benchmark.scores) != 1:
        raise NemotronError(
            f"{setting.name} does not say how an answer becomes a program",
            where=setting.name,
            remedy="give it data with a program, and one score",
        )
    return benchmark.data


def _write_task(benchmark: Benchmark, setting: Setting) -> str:
    """Write the task without its scoring, and return the file's path."""
    settings = _settings(benchmark, setting)
    package = setting.installed.package("lm_eval")
    harness_task = _load(package / "tasks" / settings.tasks)
    task = {key: value for key, value in harness_task.items() if key not in LEFT_OUT}
    rows = None
    if setting.data is not None:
        rows = setting.data / f"{setting.name}.jsonl"
    elif settings.package is not None:
        rows = setting.packaged(settings.package)
    if rows is None:
        task["dataset_name"] = harness_task.get("dataset_name")
    else:
        read_rows(rows, settings)
        task["dataset_path"] = "json"
        task["dataset_kwargs"] = {"data_files": {settings.split: str(rows.absolute())}}
    # The answer goes on after the opened fence: the assistant's message that the task ends with.
    going_on = {"continue_final_message": True, "add_generation_prompt": False}
    length = {} if benchmark.max_tokens is None else {"max_gen_toks": benchmark.max_tokens}
    task["generation_kwargs"] = task.get("generation_kwargs", {}) | going_on | length
    task["metric_list"] = [{"metric": "exact_match"}]  # of no use, but one is needed
    path = setting.folder / TASKS / f"{setting.name}.yaml"
    make_folder(path.parent)
    write_atomically(path, yaml.safe_dump(task))
    return str(path)


class _Loader(yaml.SafeLoader):
    """Reads a harness's task without its functions, which would be imported."""


_Loader.add_constructor("!function", lambda _loader, _node: None)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506, it is safe
    except (OSError, yaml.YAMLError) as error:
        raise NemotronError(f"no readable task: {error}", where=path) from error
    included = content.get("include")
    return (_load(path.parent / included) if included else {}) | dict(content)
