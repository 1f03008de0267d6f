"""Reports as JSON and Markdown, and the comparison of two reports."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pydantic import ValidationError

from nemotron_bench.report_text import interval, quantiles
from nemotron_bench.results import LevelResult, Report
from nemotron_bench.statistics import LATENCIES, QUANTILES
from nemotron_bench.sweep import knee_text
from nemotron_core.errors import NemotronError

HEAD = (
    "load", "requests", "errors", "req/s", "tokens/s [95 %]", "TTFT ms p50 [95 %] / p90 / p99",
    "ITL ms p50 [95 %] / p90 / p99", "E2E ms p50 [95 %] / p90 / p99", "goodput req/s",
)  # fmt: skip


def prepare_folder(folder: Path) -> None:
    """Create the folder of the reports before the load, and load the library of their plots.

    So a long measurement does not end without its reports. Raises `NemotronError` if the operating
    system refuses, and `ModuleNotFoundError` without matplotlib.
    """
    import_module("nemotron_bench.html_report")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=folder) from error


def write_reports(report: Report, folder: Path) -> list[Path]:
    """Write `bench.json`, `bench.md` and `bench.html` to `folder`.

    Returns their paths. Raises `NemotronError` if the operating system refuses.
    """
    from nemotron_bench.html_report import html  # noqa: PLC0415  # with it comes matplotlib

    texts = {
        "bench.json": report.model_dump_json(indent=1) + "\n",
        "bench.md": markdown(report),
        "bench.html": html(report),
    }
    try:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=folder) from error
    return [folder / name for name in texts]


def read_report(path: Path) -> Report:
    """Read a `bench.json`. Raises `NemotronError` if it cannot be read or is no report."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except ValidationError as error:
        raise NemotronError(
            "this is no report", where=path, remedy="name a bench.json of `nemotron bench`"
        ) from error


def markdown(report: Report) -> str:
    """Return a report as a Markdown table, followed by what was measured and on what."""
    facts = [f"- {name}: {value}" for name, value in report.facts().items()]
    lines = [*table(HEAD, [_row(level) for level in report.levels]), ""]
    if report.knee is not None:
        lines += [knee_text(report.knee, report.levels), ""]
    return "\n".join([*lines, *facts, ""])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _row(level: LevelResult) -> list[str]:
    summaries = [level.latencies[name] for name in LATENCIES]
    return [
        level.label,
        str(level.requests),
        str(sum(level.errors.values())),
        f"{level.requests_per_second:.2f}",
        f"{level.output_tokens_per_second:.1f}{interval(level.throughput_interval, 1)}",
        *("–" if summary is None else quantiles(summary) for summary in summaries),
        "–" if level.goodput is None else f"{level.goodput:.2f}",
    ]


def compare(a_report: Report, b_report: Report) -> str:
    """Return Markdown tables with A, B and B over A for each load that both reports have.

    Raises `NemotronError` if they have no load in common.
    """
    lines = []
    b_levels = {level.label: level for level in b_report.levels}
    for level in a_report.levels:
        if (b_level := b_levels.get(level.label)) is None:
            continue
        rows = []
        for name, (a, b) in _numbers(level, b_level).items():
            ratio = f"{b / a:.3f}" if a else "–"
            rows.append([name, f"{a:.4g}", f"{b:.4g}", ratio])
        lines += [f"{level.label}:", "", *table(["", "A", "B", "B / A"], rows), ""]
    if not lines:
        raise NemotronError("the two reports have no load in common", where="--compare")
    heads = [f"{name}: {report.target}, {report.started}"
             for name, report in (("A", a_report), ("B", b_report))]  # fmt: skip
    unlike = [f"warning: {text}" for text in differences(a_report, b_report)]
    return "\n".join([*heads, *unlike, "", *lines])


def differences(a_report: Report, b_report: Report) -> list[str]:
    """Return in what two runs differ beside their results, so that these may not be compared."""
    a, b = (
        {"generator": r.generator, **r.settings, **r.machine, **r.versions}
        for r in (a_report, b_report)
    )
    return [
        f"{name} is {a.get(name, 'unknown')} in A and {b.get(name, 'unknown')} in B"
        for name in {**a, **b}
        if a.get(name) != b.get(name)
    ]


def _numbers(a_level: LevelResult, b_level: LevelResult) -> dict[str, tuple[float, float]]:
    numbers = {
        "requests/s": (a_level.requests_per_second, b_level.requests_per_second),
        "output tokens/s": (a_level.output_tokens_per_second, b_level.output_tokens_per_second),
    }
    if a_level.goodput is not None and b_level.goodput is not None:
        numbers["goodput"] = (a_level.goodput, b_level.goodput)
    for name, text in LATENCIES.items():
        a, b = a_level.latencies[name], b_level.latencies[name]
        if a and b:
            numbers |= {
                f"{text}, {quantile}, ms": (getattr(a, quantile) * 1e3, getattr(b, quantile) * 1e3)
                for quantile in QUANTILES
            }
    return numbers
