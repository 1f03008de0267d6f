"""Start-up of `nemotron convert`: a conversion of a model of 2 MB, and what Python itself takes.

The commands take turns. The fastest of them show what is left: an interpreter, and NumPy, which
every conversion needs. With bytecode in place, as `pip install` leaves it.
"""

from __future__ import annotations

import argparse
import compileall
import shutil
import subprocess
import sys
import time
from typing import Any

import nemotron_cli
import nemotron_convert
import nemotron_core
from bench.measurements.machine import NEMOTRON, ROOT
from bench.measurements.timing import in_turn, summary

MODEL = ROOT / "tests" / "golden" / "tiny_zarr_tp1pp1.nemo"
FAILING = "convert of a missing file"
"""It loads what a conversion needs and ends with an error."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the common options are all."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    for package in (nemotron_cli, nemotron_convert, nemotron_core):
        compileall.compile_dir(package.__path__[0], quiet=1)
    out = options.work / "out"
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "python with numpy": [sys.executable, "-c", "import numpy"],
        "convert --help": [NEMOTRON, "convert", "--help"],
        FAILING: [NEMOTRON, "convert", str(out / "missing"), "-o", str(out)],
        "convert of 2 MB": [NEMOTRON, "convert", str(MODEL), "-o", str(out), "--tp", "8"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _, name in in_turn(options.runs, list(commands)):
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        done = subprocess.run(commands[name], capture_output=True, check=False)
        seconds[name].append(time.perf_counter() - start)
        if (done.returncode != 0) != (name == FAILING):
            raise SystemExit(f"{name} failed with {done.returncode}: {done.stderr.decode()}")
    return {"seconds": {name: summary(times) for name, times in seconds.items()}}
