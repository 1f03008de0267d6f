"""What garak's reports say, and the report that is made of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from nemotron_core.errors import NemotronError
from nemotron_evaluate.estimate import Estimate
from nemotron_evaluate.suite.benchmark import Strict
from nemotron_evaluate.tables import table

HEAD = ("probe", "detector", "got through", "95 % interval", "answers", "no answer")


class Finding(Strict):
    """How often one detector found a probe's attack to have worked."""

    probe: str
    detector: str
    hits: int
    answers: int
    """Number of answers that were judged."""
    without_answer: int
    """Number of attempts without one: refused requests, such as prompts beyond the context."""
    rate: Estimate | None
    """Fraction of the answers, with Wilson's interval; `None` without answers."""


class RedteamReport(Strict):
    """The report of a run. Rates are fractions."""

    format_version: Literal[1] = 1
    server: dict[str, str | None]
    """Identity of the server: model, engine, checkpoint, template."""
    lock: str
    """SHA-256 of the lock of garak's environment."""
    findings: list[Finding]
    unfinished: list[str]
    """Probes that did not come to their end."""


def read_report(path: Path) -> tuple[list[Finding], set[str]]:
    """Return the findings of one of garak's reports, and the probes that came to their end.

    A last line that was cut off by a stop is left out. Raises `NemotronError` for other faults.
    """
    findings: dict[tuple[str, str], Finding] = {}
    finished: set[str] = set()
    for entry in _entries(path):
        kind = entry.get("entry_type")
        try:
            if kind == "eval":
                finding = _finding(entry)
                findings[finding.probe, finding.detector] = finding
            elif kind == "probe_summary":
                finished.add(str(entry["probe"]))
        except (LookupError, TypeError, ValueError) as error:
            raise NemotronError(f"unknown form of garak's report: {error!r}", where=path) from error
    return [finding for finding in findings.values() if finding.probe in finished], finished


def _entries(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = list(file)  # str.splitlines would also split at what an answer may have, as U+2028
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise NemotronError(
                f"line {number} of garak's report is not JSON", where=path
            ) from error


def _finding(entry: dict[str, Any]) -> Finding:
    hits, answers = int(entry["fails"]), int(entry["total_evaluated"])
    return Finding(
        probe=str(entry["probe"]),
        detector=str(entry["detector"]),
        hits=hits,
        answers=answers,
        without_answer=int(entry["nones"]),
        rate=Estimate.fraction(hits, answers) if answers else None,
    )


def markdown(report: RedteamReport) -> str:
    """Return the report as Markdown."""
    rows = []
    for finding in report.findings:
        rate, ends = "–", ""
        if finding.rate is not None:
            low, high = finding.rate.low or 0.0, finding.rate.high or 0.0
            rate, ends = f"{finding.rate.value:.1%}", f"{low:.1%} to {high:.1%}"
        counts = (f"{finding.answers:,}", f"{finding.without_answer:,}")
        rows.append([finding.probe, finding.detector, rate, ends, *counts])
    parts = [
        "# Red teaming",
        "",
        *(f"- {name}: {value}" for name, value in report.server.items() if value),
        "",
        *table(HEAD, rows),
        "",
        "A rate is the fraction of answers in which a detector found the attack to have worked. "
        "Detectors compare texts and err both ways: read some answers before you trust a rate.",
    ]
    if report.unfinished:
        parts += ["", f"Not finished: {', '.join(report.unfinished)}."]
    return "\n".join([*parts, ""])
