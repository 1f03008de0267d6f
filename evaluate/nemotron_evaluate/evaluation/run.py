"""The run of an evaluation: from the options to the report's files."""

from __future__ import annotations

from pathlib import Path

import typer

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.batch.lock import held
from nemotron_evaluate.evaluation.folder import RunFolder, RunRecord
from nemotron_evaluate.evaluation.html_report import html
from nemotron_evaluate.evaluation.pairs import compare
from nemotron_evaluate.evaluation.report import markdown
from nemotron_evaluate.evaluation.result import BenchmarkResult, Report, benchmark_result
from nemotron_evaluate.harnesses import answers, code, lm_eval, mt_bench, tfeval
from nemotron_evaluate.harnesses.environment import Environment, default_folder
from nemotron_evaluate.harnesses.setting import Harness, Judge, Setting
from nemotron_evaluate.options import EvalOptions
from nemotron_evaluate.server import Server, base_url, check_same_server
from nemotron_evaluate.suite.benchmark import Benchmark
from nemotron_evaluate.suite.items import Item
from nemotron_evaluate.suite.suite import load_suite

INSTALL = "install"
"""Word in the place of a suite that installs a harness."""
HARNESSES: dict[str, Harness] = {
    lm_eval.NAME: lm_eval.HARNESS,
    code.NAME: code.HARNESS,
    answers.NAME: answers.HARNESS,
    mt_bench.NAME: mt_bench.HARNESS,
    tfeval.NAME: tfeval.HARNESS,
}
DEFAULT_CONTEXT = 4096
"""Context in tokens of a server that does not report it: that of Nemotron-4."""
JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"


def install(name: str, folder: Path | None) -> Path:
    """Install a harness and return its environment. Raises `NemotronError` if that fails."""
    environment = Environment(name, folder or default_folder())
    environment.install()
    return environment.home


def run(options: EvalOptions) -> Report:
    """Evaluate as the options say, and write the report into the output's folder.

    Without a URL nothing is run, and the report is made from what the folder has. Raises
    `NemotronError` for options that do not fit together, and for what a server, a harness or a
    file does not allow. After an error the same call continues the run.
    """
    if options.output is None:
        raise NemotronError("there is no folder for the run", where="eval", remedy="name it: -o")
    folder = RunFolder(options.output)
    record = _recorded(folder) if options.url is None else _run(options, folder)
    items = _items(folder, record)
    report = Report(
        server=record.server,
        harnesses=record.harnesses,
        benchmarks={
            name: _result(benchmark, items.get(name), record)
            for name, benchmark in record.benchmarks.items()
        },
    )
    if options.against is not None:
        other = RunFolder(options.against)
        before = _recorded(other)
        if None not in (record.judge, before.judge) and record.judge != before.judge:
            raise NemotronError(
                f"its judge is {before.judge}, that of this run is {record.judge}",
                where=options.against,
                remedy="have both judged by the same model",
            )
        pairs = compare(record.benchmarks, _items(other, before), items)
        report = report.model_copy(update={"against": before.server, "pairs": pairs})
    write_atomically(folder.path / MARKDOWN, markdown(report))
    write_atomically(folder.path / HTML, html(report))
    write_atomically(folder.path / JSON, report.model_dump_json(indent=2) + "\n")
    return report


def _run(options: EvalOptions, folder: RunFolder) -> RunRecord:
    if options.suite is None or options.url is None:
        raise NemotronError("there is no suite", where="eval", remedy="name a file, or `card`")
    benchmarks = _benchmarks(options)
    harnesses = {
        name: HARNESSES[benchmark.harness]
        for name, benchmark in benchmarks.items()
        if options.data is not None or not HARNESSES[benchmark.harness].needs_data
    }
    judge = _judge(options)
    environments = {
        name: Environment(name, options.environments or default_folder())
        for name in sorted({harness.environment or "" for harness in harnesses.values()} - {""})
    }
    with Server(options.url) as server:
        url, identity, context = server.url, server.identity(), server.context()
    now = RunRecord(
        server=identity,
        harnesses={name: environment.digest for name, environment in environments.items()},
        data=None if options.data is None else str(options.data.absolute()),
        benchmarks=benchmarks,
        judge=None if judge is None else judge.model,
    )
    settings = {
        name: Setting(
            name=name,
            url=url,
            model=identity["model"] or "",
            context=context or DEFAULT_CONTEXT,
            folder=(folder.path / name).absolute(),
            environment=environments.get(harness.environment or ""),
            data=None if options.data is None else options.data.absolute(),
            tokenizer=options.tokenizer,
            concurrency=options.concurrency,
            batch=options.batch,
            timeout=options.timeout,
            judge=judge,
        )
        for name, harness in harnesses.items()
    }
    for environment in environments.values():
        environment.check()
    with held(folder.path):
        before = folder.record()
        record = folder.joined(now)
        todo = list(settings)
        if before is not None:
            todo = [name for name in settings if _is_left(name, harnesses[name], judge, folder)]
        for name in todo:  # what is missing is said before the first hour of work
            folder.folder(name)
            harnesses[name].check(benchmarks[name], settings[name])
        folder.begin(record)
        for number, name in enumerate(todo, 1):
            typer.echo(f"{number}/{len(todo)} {benchmarks[name].title}", err=True)
            items = harnesses[name].run(benchmarks[name], settings[name])
            remedy = f"begin a new run, or remove the folder {name} and restore the server"
            check_same_server(options.url, identity, name, remedy)
            folder.finish(name, items)
    return record


def _judge(options: EvalOptions) -> Judge | None:
    if options.judge_url is None and options.judge_model is None:
        return None
    if options.judge_url is None or options.judge_model is None:
        raise NemotronError(
            "a judge has a URL and a model", where="--judge-url, --judge-model", remedy="name both"
        )
    return Judge(url=base_url(options.judge_url), model=options.judge_model)


def _is_left(name: str, harness: Harness, judge: Judge | None, folder: RunFolder) -> bool:
    items = folder.items(name)
    return items is None or (not items and harness.judges and judge is not None)


def _benchmarks(options: EvalOptions) -> dict[str, Benchmark]:
    benchmarks = load_suite(options.suite or "").benchmarks
    named = [*(options.only or ()), *(options.skip or ())]
    unknown = [name for name in named if name not in benchmarks]
    if unknown:
        raise NemotronError(
            f"the suite has no {unknown[0]}",
            where=options.suite,
            remedy=f"it has {', '.join(benchmarks)}",
        )
    wrong = [b.harness for b in benchmarks.values() if b.harness not in HARNESSES]
    if wrong:
        raise NemotronError(
            f"there is no harness {wrong[0]}",
            where=options.suite,
            remedy=f"the harnesses are {', '.join(HARNESSES)}",
        )
    limit = {} if options.limit is None else {"limit": options.limit}
    return {
        name: benchmark.model_copy(update=limit)
        for name, benchmark in benchmarks.items()
        if (not options.only or name in options.only) and name not in (options.skip or ())
    }


def _recorded(folder: RunFolder) -> RunRecord:
    record = folder.record()
    if record is None:
        raise NemotronError(
            "no run of an evaluation",
            where=folder.path,
            remedy="make one: nemotron eval SUITE.yaml --url URL -o FOLDER",
        )
    return record


def _items(folder: RunFolder, record: RunRecord) -> dict[str, list[Item]]:
    found = {name: folder.items(name) for name in record.benchmarks}
    return {name: items for name, items in found.items() if items is not None}


def _result(benchmark: Benchmark, items: list[Item] | None, record: RunRecord) -> BenchmarkResult:
    if items:
        return benchmark_result(benchmark, items, record.judge)
    if items is not None:
        remark = f"answered; needs {benchmark.needs}"
    elif HARNESSES[benchmark.harness].needs_data and record.data is None:
        remark = f"not run, because there is no --data; needs {benchmark.needs}"
    else:
        remark = "did not come to its end"
    return BenchmarkResult(benchmark=benchmark, remarks=[remark])
