"""The run of red teaming: garak's settings from ours, its process, and the report.

garak writes a report for each of its runs. A probe that came to its end is in one of them and is
not run again, so the same command goes on where a run was stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer
import yaml
from pydantic import ValidationError

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.batch.lock import held
from nemotron_data.transport.protocol import api_key
from nemotron_evaluate.harnesses.environment import Environment, default_folder
from nemotron_evaluate.harnesses.process import OutOfTime, run_harness
from nemotron_evaluate.options import RedteamOptions
from nemotron_evaluate.redteam.probes import DEFAULT, chosen_probes
from nemotron_evaluate.redteam.result import Finding, RedteamReport, markdown, read_report
from nemotron_evaluate.server import Server, check_same_server
from nemotron_evaluate.suite.benchmark import Strict
from nemotron_evaluate.writing import make_folder

NAME = "garak"
RUN, LOG, SETTINGS = "run.json", "garak.log", "garak.yaml"
JSON, MARKDOWN = "report.json", "report.md"
REPORTS = "garak"
"""Folder of garak's own reports, in the run's folder."""
NO_KEY = "none"
"""Key for a server without keys: garak's client does not start without one."""


class RunRecord(Strict):
    """What a run was begun with."""

    format_version: Literal[1] = 1
    server: dict[str, str | None]
    lock: str
    max_tokens: int
    prompts: int


def run(options: RedteamOptions) -> RedteamReport:
    """Attack the server, and write the report into the output's folder.

    After `options.minutes` garak is stopped, and the report names what is left. Raises
    `NemotronError` if garak, the server or the folder do not allow the run. The same call goes on
    with what is left.
    """
    environment = Environment(NAME, options.environments or default_folder())
    environment.check()
    probes = chosen_probes(environment.package(NAME), tuple(options.probe or DEFAULT))
    with Server(options.url) as server:
        url, identity = server.url, server.identity()
    record = RunRecord(
        server=identity,
        lock=environment.digest,
        max_tokens=options.max_tokens,
        prompts=options.prompts,
    )
    with held(options.output):
        return _attack(options, environment, probes, url, record)


def _attack(
    options: RedteamOptions,
    environment: Environment,
    probes: list[str],
    url: str,
    record: RunRecord,
) -> RedteamReport:
    """Run the probes that are left, in the run's folder, and write the report."""
    folder = options.output
    reports = folder.absolute() / REPORTS
    _begin(folder, record)
    findings, finished = _read(reports)
    todo = [probe for probe in probes if probe not in finished]
    if todo:
        prefix = f"run-{len(list(reports.glob('*.report.jsonl'))) + 1}"
        settings = _settings(options, url, record.server["model"] or "", todo, reports, prefix)
        path = folder.absolute() / SETTINGS
        write_atomically(path, yaml.safe_dump(settings, sort_keys=False))
        typer.echo(f"{len(todo)} probes, at most {options.minutes:g} minutes", err=True)
        try:
            run_harness(
                [str(environment.program("python")), "-m", NAME, "--config", str(path)],
                folder=reports,
                log=folder / LOG,
                environment=_variables(reports),
                seconds=options.minutes * 60,
            )
        except OutOfTime:
            typer.echo("the time is over; the same command goes on with the rest", err=True)
        remedy = "begin a new run in another folder"
        check_same_server(options.url, record.server, "the run", remedy)
        findings, finished = _read(reports)
    report = RedteamReport(
        server=record.server,
        lock=record.lock,
        findings=[finding for finding in findings if finding.probe in probes],
        unfinished=[probe for probe in probes if probe not in finished],
    )
    write_atomically(folder / MARKDOWN, markdown(report))
    write_atomically(folder / JSON, report.model_dump_json(indent=2) + "\n")
    return report


def _begin(folder: Path, record: RunRecord) -> None:
    path = folder / RUN
    make_folder(folder / REPORTS)
    try:
        before = RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_atomically(path, record.model_dump_json(indent=2) + "\n")
        return
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise NemotronError(
            f"not a run of red teaming: {error}", where=folder, remedy="name another folder"
        ) from error
    if before != record:
        changed = [name for name in RunRecord.model_fields
                   if getattr(before, name) != getattr(record, name)]  # fmt: skip
        raise NemotronError(
            f"the run was begun with another {', '.join(changed)}",
            where=folder,
            remedy="restore that, or name another folder",
        )


def _read(reports: Path) -> tuple[list[Finding], set[str]]:
    findings: list[Finding] = []
    finished: set[str] = set()
    for path in sorted(reports.glob("*.report.jsonl")):
        more, ended = read_report(path)
        findings += more
        finished |= ended
    return findings, finished


def _settings(
    options: RedteamOptions, url: str, model: str, probes: list[str], reports: Path, prefix: str
) -> dict[str, Any]:
    client = {
        "uri": f"{url}/v1/",
        "max_tokens": options.max_tokens,
        "temperature": 0.0,
        "stop": [],  # garak's own end an answer at the first # or ;
    }
    return {
        "system": {"lite": True, "parallel_attempts": options.concurrency, "narrow_output": True},
        "run": {
            "generations": 1,
            "soft_probe_prompt_cap": options.prompts,
            "spec": {"include": [f"probes.{probe}" for probe in probes]},
        },
        "plugins": {
            "target_type": "openai.OpenAICompatible",
            "target_name": model,
            "generators": {"openai": {"OpenAICompatible": client}},
        },
        "reporting": {"report_dir": str(reports), "report_prefix": prefix},
    }


def _variables(reports: Path) -> dict[str, str]:
    homes = {f"XDG_{kind}_HOME": str(reports / "home") for kind in ("DATA", "CACHE", "CONFIG")}
    return homes | {
        "OPENAICOMPATIBLE_API_KEY": api_key() or NO_KEY,
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONNOUSERSITE": "1",
    }
