"""A report as JSON, as a Markdown table, and two of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from nemotron_bench.html_report import html
from nemotron_bench.results import LevelResult, Report
from nemotron_bench.statistics import LATENCIES
from nemotron_core.errors import NemotronError

HEAD = (
    "load", "requests", "errors", "req/s", "tokens/s", "TTFT ms p50/p90/p99",
    "ITL ms p50/p90/p99", "E2E ms p50/p90/p99", "goodput req/s",
)  # fmt: skip


def write_reports(report: Report, folder: Path) -> list[Path]:
    """`bench.json`, `bench.md` and `bench.html` in `folder`, which is made."""
    texts = {
        "bench.json": report.model_dump_json(indent=1) + "\n",
        "bench.md": markdown(report),
        "bench.html": html(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=folder) from error
    return [folder / name for name in texts]


def read_report(path: Path) -> Report:
    """NemotronError if the file is not there or is no report."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except ValidationError as error:
        raise NemotronError(
            "this is no report", where=path, remedy="name a bench.json of `nemotron bench`"
        ) from error


def markdown(report: Report) -> str:
    """A table, and below it what was measured and on what."""
    facts = {
        "target": report.target,
        "generator": report.generator,
        "started": report.started,
        **report.settings,
        **report.machine,
        **report.versions,
    }
    told = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    return "\n".join([*table(HEAD, [_row(one) for one in report.levels]), "", *told, ""])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _row(level: LevelResult) -> list[str]:
    summaries = [level.latencies[name] for name in LATENCIES]
    return [
        level.label,
        str(level.requests),
        str(sum(level.errors.values())),
        f"{level.requests_per_second:.2f}",
        f"{level.output_tokens_per_second:.1f}",
        *(
            " / ".join(f"{value * 1e3:.1f}" for value in (one.p50, one.p90, one.p99))
            if one
            else "–"
            for one in summaries
        ),
        "–" if level.goodput is None else f"{level.goodput:.2f}",
    ]


def compare(one: Report, other: Report) -> str:
    """Of each load that both have run: the second, the first, and second over first."""
    lines = []
    others = {level.label: level for level in other.levels}
    for level in one.levels:
        if (second := others.get(level.label)) is None:
            continue
        rows = []
        for name, (a, b) in _numbers(level, second).items():
            ratio = f"{b / a:.3f}" if a else "–"
            rows.append([name, f"{a:.4g}", f"{b:.4g}", ratio])
        lines += [f"{level.label}:", "", *table(["", "A", "B", "B / A"], rows), ""]
    if not lines:
        raise NemotronError("the two reports have no load in common", where="--compare")
    return "\n".join([f"A: {one.target}, {one.started}", f"B: {other.target}, {other.started}", "",
                      *lines])  # fmt: skip


def _numbers(one: LevelResult, other: LevelResult) -> dict[str, tuple[float, float]]:
    numbers = {
        "requests/s": (one.requests_per_second, other.requests_per_second),
        "output tokens/s": (one.output_tokens_per_second, other.output_tokens_per_second),
    }
    if one.goodput is not None and other.goodput is not None:
        numbers["goodput"] = (one.goodput, other.goodput)
    for name, text in LATENCIES.items():
        a, b = one.latencies[name], other.latencies[name]
        if a and b:
            numbers |= {
                f"{text}, {share}, ms": (getattr(a, share) * 1e3, getattr(b, share) * 1e3)
                for share in ("p50", "p90", "p99")
            }
    return numbers
