"""The plots of the pages as SVG files, drawn from records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.measurements.batch_tables import CLIENTS, NAMES
from bench.measurements.drawing import Lines, Ranges, Value, svg
from bench.measurements.records import Record

LOADS = {"decode, batch 1": "1, decoding alone"}
"""What a load of the CPU engines is called, where its own name says too little beside others."""
RSS_LIMIT = 4 * 2**30
"""Limit that conversions keep to, in bytes."""


def of_runs(values: Mapping[str, float], factor: float = 1.0) -> Value:
    """Return the summary of several runs as a range."""
    return values["min"] * factor, values["median"] * factor, values["max"] * factor


def serving() -> str:
    """Return the fractions of the engine's tokens that clients get, before and now."""
    limits = [
        limit
        for limit in Record.read("serving").results["limits"]
        if limit["quantity"] == "fraction"
    ]
    return svg(
        Ranges(
            "Tokens that clients get",
            "fraction of the engine's tokens; grey: the limit",
            [limit["load"].replace("x", " × ") for limit in limits],
            {
                "earlier commit": [of_runs(limit["old"]) for limit in limits],
                "now": [of_runs(limit["value"]) for limit in limits],
            },
            marks=[limit["limit"] for limit in limits],
        )
    )


def hops() -> str:
    """Return the rates of the CPU engine through each hop."""
    rates = Record.read("hops").results["tokens_per_second"]
    return svg(
        Lines(
            "Tokens per second of the CPU engine, through each hop",
            "streams",
            {
                hop: [(float(count), of_runs(rate)) for count, rate in by.items()]
                for hop, by in rates.items()
            },
            log=True,
        )
    )


def leaving() -> str:
    """Return the times until the engine is free of a request whose client has left."""
    times = Record.read("hangups").results["seconds_to_free"]
    return svg(
        Ranges(
            "Until the engine is free",
            "ms after the client has left: the median, and to the longest time",
            list(times),
            {"": [(t["p50"] * 1e3, t["p50"] * 1e3, t["max"] * 1e3) for t in times.values()]},
        )
    )


def cpu_peers(name: str) -> str:
    """Return the decoding rates of engines on one machine."""
    engines = Record.read(name).results["engines"]
    rates = next(iter(engines.values()))["tokens_per_second"]
    loads = [load for load in rates if load != "prefill"]
    return svg(
        Ranges(
            "Engines on two cores",
            "tokens per second",
            [LOADS.get(load, load) for load in loads],
            {
                engine: [of_runs(values["tokens_per_second"][load]) for load in loads]
                for engine, values in engines.items()
            },
        )
    )


def perf_analyzer() -> str:
    """Return the results of our load over those of perf_analyzer's."""
    rows: Mapping[str, Mapping[str, Any]] = Record.read("perf_analyzer_check").results["rows"]
    tiny = Record.read("perf_analyzer_check_tiny").results["rows"]
    labels = [(load, quantity) for load, quantities in rows.items() for quantity in quantities]
    return svg(
        Ranges(
            "nemotron bench over perf_analyzer",
            "ratio of the medians",
            [f"{quantity}, {load}" for load, quantity in labels],
            {
                "242 M parameters": [rows[load][quantity]["ratio"] for load, quantity in labels],
                "the tiny model": [tiny[load][quantity]["ratio"] for load, quantity in labels],
            },
            line=1.0,
        )
    )


def startup() -> str:
    """Return when each part of a server is ready."""
    steps = Record.read("startup").results["steps"]
    ranges = [of_runs(times) for times in steps.values()]
    return svg(Ranges("Start-up", "seconds after the start", list(steps), {"": ranges}))


def batch_speed() -> str:
    """Return what clients cost at some numbers of requests at once."""
    runs = Record.read("batch_speed").results["speed"]
    lines = {
        NAMES[name].replace("`", ""): [(run["concurrency"], run[name]["cpu"]) for run in runs]
        for name in CLIENTS
    }
    return svg(Lines("CPU seconds for 1,000 rows", "requests at once", lines, log=True))


def stress() -> str:
    """Return the RSS of the server during the stress test: of all processes, and of each."""
    results = Record.read("stress").results
    samples = results["samples"]
    last = samples[-1]["rss"]
    totals = [(sample["seconds"], sum(sample["rss"].values()) / 1e6) for sample in samples]
    lines = {f"all, {totals[-1][1]:,.0f} MB": totals}
    for name in sorted(last, key=lambda name: -last[name]):
        lines[f"{name}, {last[name] / 1e6:,.0f}"] = [
            (sample["seconds"], sample["rss"][name] / 1e6)
            for sample in samples
            if name in sample["rss"]
        ]
    growth = results["growth_in_the_second_half_megabytes_per_minute"]["all"]
    title = f"RSS of the server in MB; in the second half {growth:+.2f} MB a minute"
    return svg(Lines(title, "seconds", lines, dots=False))


def convert_scaling() -> str:
    """Return the seconds and the peak RSS of conversions over their bytes."""
    rows = Record.read("convert_scaling").results["rows"]
    seconds: list[tuple[float, Value]] = [
        (row["bytes"] / 1e9, (row["min_seconds"], row["median_seconds"], row["max_seconds"]))
        for row in rows
    ]
    memory = [(row["bytes"] / 1e9, row["peak_rss"] / 1e6) for row in rows]
    return svg(
        Lines("Conversion: seconds", "GB", {"": seconds}),
        Lines("Peak RSS in MB, up to the limit", "GB", {"": memory}, top=RSS_LIMIT / 1e6),
    )


PLOTS: Mapping[str, Callable[[], str]] = {
    "serving.svg": serving,
    "hops.svg": hops,
    "leaving.svg": leaving,
    "cpu_peers.svg": partial(cpu_peers, "cpu_peers"),
    "cpu_peers_zen4.svg": partial(cpu_peers, "cpu_peers_zen4"),
    "perf_analyzer_check.svg": perf_analyzer,
    "startup.svg": startup,
    "batch_speed.svg": batch_speed,
    "stress.svg": stress,
    "convert_scaling.svg": convert_scaling,
}
"""Plots by the name of their file in `docs/images/`."""
