"""`nemotron bench`'s own load generator against NVIDIA's perf_analyzer, on one server.

    python -m bench.measurements.perf_analyzer_check ENGINE [--runs 5] [--json OUT]

ENGINE is of the CPU lane. Both send the same prompts and take turns; the prompts of each run are
new to the server. Compared are the medians over the runs, which should differ by less than 5 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from bench.measurements.convert_speed import summary
from bench.measurements.serving import serving
from nemotron_bench.results import LevelResult, machine, versions
from nemotron_bench.run import BenchSettings, run

PERF_ANALYZER = ".tools/perf_analyzer/bin/perf_analyzer"


def numbers(level: LevelResult) -> dict[str, float]:
    found = {
        "requests per second": level.requests_per_second,
        "tokens per second": level.output_tokens_per_second,
    }
    for name in ("ttft", "itl", "e2e"):
        summary = level.latencies[name]
        assert summary is not None
        found[f"{name} p50"] = summary.p50
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--perf-analyzer", default=PERF_ANALYZER)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--concurrency", default="1,8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with serving(options.engine) as server:
        settings = BenchSettings.parse(
            url=f"grpc://{server.address}:{server.grpc}",
            model=None,
            concurrency=options.concurrency,
            rate=None,
            requests=options.requests,
            warmup=4,
            input_tokens="64",
            output_tokens="64",
            slo=None,
            seed=1,
            generator="builtin",
        )
        for turn in range(options.runs):
            both = ["builtin", options.perf_analyzer]
            for generator in both[:: 1 if turn % 2 else -1]:
                seed = 2 * turn + both.index(generator)
                once = dataclasses.replace(settings, generator=generator, seed=seed)
                for level in run(once).levels:
                    name = Path(generator).name
                    found.setdefault(level.label, {}).setdefault(name, []).append(numbers(level))
    rows: dict[str, dict[str, Any]] = {}
    for label, by_generator in found.items():
        ours, theirs = (by_generator[name] for name in ("builtin", "perf_analyzer"))
        rows[label] = {}
        for name in ours[0]:
            mine, other = (summary([one[name] for one in runs]) for runs in (ours, theirs))
            ratio = mine["median"] / other["median"]
            rows[label][name] = {"builtin": mine, "perf_analyzer": other, "ratio": ratio}
    result = {"machine": machine(), "versions": versions(), "runs": options.runs, "rows": rows}
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
