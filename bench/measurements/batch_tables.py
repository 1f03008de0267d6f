"""The tables about `nemotron batch`, each made from one record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.measurements.records import Record, conditions
from bench.measurements.timing import spread, summary
from nemotron_bench.report import table

OURS, PLAIN, LIBRARY, EARLIER = "nemotron batch", "aiohttp", "openai", "earlier commit"
CLIENTS = (OURS, PLAIN, LIBRARY, EARLIER)
NAMES = {
    OURS: "`nemotron batch`",
    PLAIN: "a plain loop on aiohttp",
    LIBRARY: "a plain loop on OpenAI's library",
    EARLIER: "`nemotron batch` before this",
}


def _spread(values: Sequence[float], form: str) -> str:
    return f"{values[0]:{form}}" if len(values) == 1 else spread(summary(values), form)


def batch_speed() -> list[str]:
    record = Record.read("batch_speed")
    runs: list[dict[str, Any]] = record.results["speed"]
    numbers = record.arguments["concurrency"]

    def values(concurrency: int, value: Callable[[dict[str, Any]], float]) -> list[float]:
        return [value(run) for run in runs if run["concurrency"] == concurrency]

    def row(title: str, form: str, value: Callable[[dict[str, Any]], float]) -> list[str]:
        return [title, *(_spread(values(number, value), form) for number in numbers)]

    def of(name: str, key: str) -> Callable[[dict[str, Any]], float]:
        return lambda run: float(run[name][key])

    rows = [row(f"CPU s, {NAMES[name]}", ".2f", of(name, "cpu")) for name in CLIENTS]
    rows.append(row("ours over aiohttp's", ".2f", lambda r: r[OURS]["cpu"] / r[PLAIN]["cpu"]))
    for name in (OURS, PLAIN):
        rows.append(row(f"rows/s, {NAMES[name]}", ",.0f", of(name, "rows_per_second")))
    columns = ["requests at once", *map(str, numbers)]
    lines = [*table(columns, rows), ""]
    for run in runs:
        if "distilabel" in run:
            values_of = run["distilabel"]
            lines += [
                f"distilabel with {run['concurrency']} at once, one run: "
                f"{values_of['cpu']:.2f} CPU s.",
                "",
            ]
    return [*lines, conditions(record)]


def batch_slow() -> list[str]:
    record = Record.read("batch_speed_slow")
    seconds = record.results["slow"]
    rows = [[NAMES[name], f"{seconds[name]:.1f}"] for name in CLIENTS if name in seconds]
    return [*table(["client", "seconds"], rows), "", conditions(record)]
