"""`nemotron convert` against `cp -r` of the same bytes, in turn on one disk.

Each starts with a cold page cache where the system allows dropping it (root on Linux). `cp` is
timed once as it is, which leaves its data to be written later, and once followed by the same
guarantee that `convert` gives.
"""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from bench.measurements.machine import NEMOTRON, drop_page_cache
from bench.measurements.random_nemo import Shape, write_nemo
from bench.measurements.timing import in_turn, run_command, summary


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gigabytes", type=float, default=4, help="size of the model, default 4")
    parser.add_argument(
        "--jobs", type=int, nargs="*", default=[], help="also these fixed numbers of threads"
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    layer = Shape(layers=2).nbytes - Shape(layers=1).nbytes
    embeddings = Shape(layers=0).nbytes
    shape = Shape(layers=max(1, round((options.gigabytes * 1e9 - embeddings) / layer)))
    source, out = options.work / "source", options.work / "out"
    shutil.rmtree(source, ignore_errors=True)
    write_nemo(source, shape)
    convert_command = [NEMOTRON, "convert", str(source), "-o", str(out), "--tp", "8"]
    commands = {
        "convert": convert_command,
        "cp": ["cp", "-r", str(source), str(out)],
        "cp and sync": ["sh", "-c", f"cp -r {source} {out} && sync -f {out}"],
    }
    for jobs in options.jobs:
        commands[f"convert --jobs {jobs}"] = [*convert_command, "--jobs", str(jobs)]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peak_rss = 0
    cold = True
    for _, name in in_turn(options.runs, list(commands)):
        shutil.rmtree(out, ignore_errors=True)
        cold = drop_page_cache() and cold
        cost = run_command(commands[name])
        seconds[name].append(cost.seconds)
        if name == "convert":
            peak_rss = max(peak_rss, cost.peak_rss)
    shutil.rmtree(source)
    shutil.rmtree(out)
    summaries = {name: summary(times) for name, times in seconds.items()}
    convert, cp, cp_and_sync = (
        summaries[name]["median"] for name in ("convert", "cp", "cp and sync")
    )
    return {
        "bytes": shape.nbytes,
        "cold_cache": cold,
        "seconds": summaries,
        "peak_rss": peak_rss,
        "throughput_over_cp": cp / convert,
        "throughput_over_cp_and_sync": cp_and_sync / convert,
    }
