"""Start-up of `nemotron convert`: a conversion of a model of 2 MB, and what Python itself takes.

The commands take turns. The fastest of them show what is left: an interpreter, NumPy, and the other
libraries that every conversion needs. Each runs once before, so that all bytecode is in place, as
`pip install` leaves it. CPU seconds are measured beside seconds, because they depend less on other
processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

from bench.measurements.machine import NEMOTRON, ROOT
from bench.measurements.timing import in_turn, summary

MODEL = ROOT / "tests" / "golden" / "tiny_zarr_tp1pp1.nemo"
LIBRARIES = "numpy, ml_dtypes, pydantic.types, typer.main, yaml"
FAILING = "convert of a missing file"
"""It loads what a conversion needs and ends with an error."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the common options are all."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    out = options.work / "out"
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(options.work / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "python with numpy": [sys.executable, "-c", "import numpy"],
        "python with all libraries": [sys.executable, "-c", f"import {LIBRARIES}"],
        "convert --help": [NEMOTRON, "convert", "--help"],
        FAILING: [NEMOTRON, "convert", str(out / "missing"), "-o", str(out)],
        "convert of 2 MB": [NEMOTRON, "convert", str(MODEL), "-o", str(out), "--tp", "8"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in commands}
    for run, name in in_turn(options.runs + 1, list(commands)):
        shutil.rmtree(out, ignore_errors=True)
        start, cpu_start = time.perf_counter(), _children_seconds()
        done = subprocess.run(commands[name], capture_output=True, check=False, env=environment)
        if run > 0:
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(_children_seconds() - cpu_start)
        if (done.returncode != 0) != (name == FAILING):
            raise SystemExit(f"{name} failed with {done.returncode}: {done.stderr.decode()}")
    return {
        "seconds": {name: summary(times) for name, times in seconds.items()},
        "cpu_seconds": {name: summary(times) for name, times in cpu_seconds.items()},
    }


def _children_seconds() -> float:
    """Return the CPU time in seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
