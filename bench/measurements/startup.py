"""Time from `nemotron serve` to a server that answered, by step.

Seconds after the start of the process. The steps are read from Triton's log, which begins when the
engine has answered; the last one is the port file, which is written when the models and the gateway
have answered.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.measurements.machine import NEMOTRON
from bench.measurements.timing import summary

PORTS = ("http", "grpc", "metrics", "health", "gateway")
WAIT = 120
STAMP = re.compile(r"^[IWE](\d{4} \d\d:\d\d:\d\d\.\d{6})")
STEPS = {
    "the engine is loaded, Triton runs": "",
    "preprocessing is loaded": "successfully loaded 'preprocessing'",
    "postprocessing is loaded": "successfully loaded 'postprocessing'",
    "generate is loaded": "successfully loaded 'generate'",
    "tensorrt_llm_bls is loaded": "successfully loaded 'tensorrt_llm_bls'",
    "tensorrt_llm is loaded": "successfully loaded 'tensorrt_llm'",
    "Triton listens": "Started HTTPService",
}
"""Text of the first line of Triton's log that ends each step."""
READY = "ready: models and gateway have answered"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine folder of the CPU lane")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    runs = [start(options.engine) for _ in range(options.runs)]
    return {"steps": {step: summary([run[step] for run in runs]) for step in runs[0]}}


def start(engine: Path) -> dict[str, float]:
    """Start and stop one server. Returns the seconds from its start to the end of each step."""
    with tempfile.TemporaryDirectory() as name:
        ports, log = Path(name, "ports.json"), Path(name, "triton.log")
        command = [NEMOTRON, "serve", str(engine), *(f"--{port}-port=0" for port in PORTS)]
        started = time.time()
        process = subprocess.Popen(
            [*command, "--port-file", str(ports), "--log-file", str(log)],
            stdout=subprocess.DEVNULL,
        )
        try:
            while not ports.exists():
                if process.poll() is not None or time.time() - started > WAIT:
                    raise SystemExit(f"not ready: {log.read_text()[-2000:]}")
                time.sleep(0.01)
            ready = time.time() - started
            lines = log.read_text(errors="replace").splitlines()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT)
    steps = {
        step: next(log_time(line) for line in lines if STAMP.match(line) and text in line) - started
        for step, text in STEPS.items()
    }
    return steps | {READY: ready}


def log_time(line: str) -> float:
    """Return the time of a line of Triton's log, in seconds since the epoch.

    The log has UTC without a year.
    """
    stamp = STAMP.match(line)
    assert stamp is not None
    year = datetime.now(timezone.utc).year
    logged = datetime.strptime(f"{year}{stamp[1]}", "%Y%m%d %H:%M:%S.%f")
    return logged.replace(tzinfo=timezone.utc).timestamp()
