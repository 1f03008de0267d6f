"""`nemotron bench`'s own load generator against NVIDIA's perf_analyzer, on one server.

Both send prompts of the same kind and take turns; the prompts of each run are new to the server.
Compared are the medians over the runs, which should differ by less than 5 %.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from bench.measurements.servers import serving
from bench.measurements.timing import in_turn, summary
from nemotron_bench.results import LevelResult
from nemotron_bench.run import run
from nemotron_bench.settings import BenchSettings
from nemotron_bench.statistics import LATENCIES

PERF_ANALYZER = ".tools/perf_analyzer/bin/perf_analyzer"
NAMES = ("perf_analyzer", "builtin")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine folder of the CPU lane")
    parser.add_argument("--perf-analyzer", type=Path, default=Path(PERF_ANALYZER))
    parser.add_argument("--requests", type=int, default=40, help="requests per load, default 40")
    parser.add_argument("--concurrency", default="1,8", help="loads, default 1,8")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    generators = {"builtin": "builtin", "perf_analyzer": str(options.perf_analyzer)}
    quantities: dict[str, dict[str, list[dict[str, float]]]] = {}
    with serving(options.engine) as server:
        settings = BenchSettings(
            url=f"grpc://{server.address}:{server.grpc}",
            concurrency=options.concurrency,
            requests=options.requests,
            input_tokens="64",
            output_tokens="64",
        )
        for seed, (_, name) in enumerate(in_turn(options.runs, NAMES)):
            run_settings = dataclasses.replace(settings, generator=generators[name], seed=seed)
            for level in run(run_settings).levels:
                by_name = quantities.setdefault(level.label, {name: [] for name in NAMES})
                by_name[name].append(compared_quantities(level))
    return {"rows": {label: compare(by_name) for label, by_name in quantities.items()}}


def compared_quantities(level: LevelResult) -> dict[str, float]:
    """Return throughputs per second and median latencies in seconds."""
    quantities = {
        "requests per second": level.requests_per_second,
        "tokens per second": level.output_tokens_per_second,
    }
    for name in LATENCIES:
        latency = level.latencies[name]
        assert latency is not None
        quantities[f"{name} p50"] = latency.p50
    return quantities


def compare(by_name: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return both generators' summaries of each quantity, and the ratio of their medians."""
    rows = {}
    for quantity in by_name["builtin"][0]:
        builtin, perf_analyzer = (
            summary([run[quantity] for run in by_name[name]])
            for name in ("builtin", "perf_analyzer")
        )
        ratio = builtin["median"] / perf_analyzer["median"]
        rows[quantity] = {"builtin": builtin, "perf_analyzer": perf_analyzer, "ratio": ratio}
    return rows
