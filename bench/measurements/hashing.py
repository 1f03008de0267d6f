"""SHA-256, which the converter uses, against BLAKE3: one thread, and all cores with a file each.

BLAKE3 is installed in an environment in the work folder. Rates are GB/s of bytes in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from bench.measurements.timing import in_turn, summary

PACKAGE = "blake3==1.0.11"
CODE = """
import hashlib, json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
import blake3
threads, name = int(sys.argv[1]), sys.argv[2]
data = memoryview(bytearray(os.urandom(1 << 20)))
def run(_):
    digest = hashlib.sha256() if name == "sha256" else blake3.blake3()
    for _ in range(1024):
        digest.update(data)
    digest.digest()
start = time.perf_counter()
with ThreadPoolExecutor(threads) as pool:
    list(pool.map(run, range(threads)))
print(json.dumps(threads * 1024 * len(data) / (time.perf_counter() - start) / 1e9))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    python = options.work / "blake3" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", options.work / "blake3"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    names = [f"{hash_} {count}" for hash_ in ("sha256", "blake3") for count in options.threads]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _, name in in_turn(options.runs, names):
        hash_, count = name.split()
        command = [str(python), "-c", CODE, count, hash_]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rates[name].append(json.loads(done.stdout))
    return {
        "package": PACKAGE,
        "gb_per_s": {name: summary(values) for name, values in rates.items()},
    }
