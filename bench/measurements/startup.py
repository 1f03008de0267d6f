"""What takes the time from `nemotron serve` to a server that has answered.

    python -m bench.measurements.startup ENGINE [--runs 5] [--json OUT]

Seconds after the start of the process, median over the runs; the steps are read from Triton's log,
and the last is the port file, which is written when the engine and the gateway have answered.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from bench.measurements.convert_speed import NEMOTRON
from nemotron_bench.results import machine, versions

PORTS = ("http", "grpc", "metrics", "health", "gateway")
WAIT = 120
STAMP = re.compile(r"^[IWE](\d{4} \d\d:\d\d:\d\d\.\d{6})")
STEPS = {
    "Triton runs": "",
    "preprocessing is loaded": "successfully loaded 'preprocessing'",
    "postprocessing is loaded": "successfully loaded 'postprocessing'",
    "generate is loaded": "successfully loaded 'generate'",
    "tensorrt_llm_bls is loaded": "successfully loaded 'tensorrt_llm_bls'",
    "the engine is loaded": "successfully loaded 'tensorrt_llm'",
    "Triton listens": "Started HTTPService",
}
READY = "ready: engine and gateway have answered"
TARGET = 5.0


def start(engine: Path) -> dict[str, float]:
    """Seconds after the start, by step."""
    with tempfile.TemporaryDirectory() as name:
        ports, log = Path(name, "ports.json"), Path(name, "triton.log")
        command = [NEMOTRON, "serve", str(engine), *(f"--{port}-port=0" for port in PORTS)]
        began = time.time()
        process = subprocess.Popen(
            [*command, "--port-file", str(ports), "--log-file", str(log)],
            stdout=subprocess.DEVNULL,
        )
        try:
            while not ports.exists():
                if process.poll() is not None or time.time() - began > WAIT:
                    raise SystemExit(f"not ready: {log.read_text()[-2000:]}")
                time.sleep(0.01)
            ready = time.time() - began
            lines = log.read_text(errors="replace").splitlines()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT)
    steps = {
        step: next(logged(line) for line in lines if STAMP.match(line) and text in line) - began
        for step, text in STEPS.items()
    }
    return steps | {READY: ready}


def logged(line: str) -> float:
    """When Triton wrote it: its log has no year, and UTC."""
    stamp = STAMP.match(line)
    assert stamp is not None
    year = datetime.now(timezone.utc).year
    when = datetime.strptime(f"{year}{stamp[1]}", "%Y%m%d %H:%M:%S.%f")
    return when.replace(tzinfo=timezone.utc).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = [start(options.engine) for _ in range(options.runs)]
    steps = {
        step: {
            "median": statistics.median(times),
            "min": min(times),
            "max": max(times),
        }
        for step in runs[0]
        if (times := [run[step] for run in runs])
    }
    result = {"machine": machine(), "versions": versions(), "runs": options.runs, "steps": steps}
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
