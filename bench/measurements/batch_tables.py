"""The tables about `nemotron batch`, each made from one record."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
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


def batch_speed() -> list[str]:
    record = Record.read("batch_speed")
    runs: list[dict[str, Any]] = record.results["speed"]
    numbers = record.arguments["concurrency"]

    def values(concurrency: int, value: Callable[[dict[str, Any]], float]) -> list[float]:
        return [value(run) for run in runs if run["concurrency"] == concurrency]

    def row(title: str, form: str, value: Callable[[dict[str, Any]], float]) -> list[str]:
        return [title, *(spread(summary(values(number, value)), form) for number in numbers)]

    def of(name: str, key: str) -> Callable[[dict[str, Any]], float]:
        return lambda run: float(run[name][key])

    rows = [row(f"CPU s, {NAMES[name]}", ".2f", of(name, "cpu")) for name in CLIENTS]
    rows.append(row("ours over aiohttp's", ".2f", lambda r: r[OURS]["cpu"] / r[PLAIN]["cpu"]))
    rows += [row(f"rows/s, {NAMES[name]}", ",.0f", of(name, "rows_per_second")) for name in CLIENTS]
    columns = ["requests at once", *map(str, numbers)]
    lines = [*table(columns, rows), ""]
    for run in runs:
        if "distilabel" in run:
            values_of = run["distilabel"]
            lines += [
                f"distilabel with {run['concurrency']} at once, one run: "
                f"{values_of['cpu']:.2f} CPU s and {values_of['rows_per_second']:,.0f} rows/s.",
                "",
            ]
    return [*lines, conditions(record)]


def batch_servers() -> list[str]:
    record = Record.read("batch_servers")
    runs = record.results["servers"]
    rows = [
        [name, spread(summary([run[name] for run in runs]), ".1f")]
        for name in ("three servers", "one killed")
    ]
    ratios = [run["one killed"] / run["three servers"] for run in runs]
    rows.append(["ratio", spread(summary(ratios), ".2f")])
    return [*table(["", "seconds"], rows), "", conditions(record)]


def batch_lanes() -> list[str]:
    record = Record.read("batch_lanes")
    rows = []
    for lane in ("gRPC", "HTTP"):
        for name in (OURS, EARLIER):
            runs = [
                run
                for run in record.results["lanes"]
                if (run["lane"], run["client"]) == (lane, name)
            ]
            cells = [spread(summary([r[key] for r in runs]), ".2f") for key in ("seconds", "cpu")]
            rows.append([f"{lane}, {NAMES[name]}", *cells])
    return [*table(["", "seconds", "CPU s of the client"], rows), "", conditions(record)]


def batch_slow() -> list[str]:
    record = Record.read("batch_slow")
    seconds = record.results["slow"]
    rows = [[NAMES[name], f"{seconds[name]:.1f}"] for name in CLIENTS if name in seconds]
    return [*table(["client", "seconds"], rows), "", conditions(record)]


def batch_resume() -> list[str]:
    record = Record.read("batch_resume")
    rows = []
    for part, title in (("resume", "999,000 of 1,000,000 rows done"), ("ordered", "sorting them")):
        for name in (OURS, EARLIER):
            runs = [run[name] for run in record.results[part]]
            rows.append(
                [
                    f"{title}, {NAMES[name]}",
                    f"{median(run['cpu'] for run in runs):.1f}",
                    f"{median(run['rss'] for run in runs) / 1e6:,.0f}",
                    f"{median(run['copies'] for run in runs):.1f}",
                ]
            )
    columns = ["", "CPU s", "peak memory MB", "copies of the output"]
    return [*table(columns, rows), "", conditions(record)]
