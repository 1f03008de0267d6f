"""`nemotron convert` against `cp -r` of the same bytes, side by side on one disk.

    python -m bench.measurements.convert_speed WORK_FOLDER [--gigabytes 4] [--runs 6] [--json OUT]

Both start with a cold page cache where the system lets us drop it (root on Linux), and take turns.
Once as they are (`cp` leaves its data to be written later, `convert` does not), once with `cp`
followed by the same guarantee. Peak RSS is that of all processes of the command together, every
5 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from bench.measurements.random_nemo import Shape, write_nemo

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))


def drop_caches() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def measure(command: list[str], cwd: Path | None = None) -> tuple[float, int]:
    """Seconds, and peak RSS in bytes over the command and its children."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL)
    peak = [0]

    def watch() -> None:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = [root, *root.children(recursive=True)]
                peak[0] = max(peak[0], sum(p.memory_info().rss for p in family))
            except psutil.Error:
                pass
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    watcher.join()
    if code:
        raise SystemExit(f"{command} failed with {code}")
    return seconds, peak[0]


def summary(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def machine() -> dict[str, object]:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    memory = psutil.virtual_memory().total
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory": memory,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    layer = Shape(layers=2).nbytes - Shape(layers=1).nbytes
    ends = Shape(layers=0).nbytes
    shape = Shape(layers=max(1, round((options.gigabytes * 1e9 - ends) / layer)))
    source, out = options.folder / "source", options.folder / "out"
    shutil.rmtree(options.folder, ignore_errors=True)
    write_nemo(source, shape)
    commands = {
        "convert": [NEMOTRON, "convert", str(source), "-o", str(out), "--tp", "8"],
        "cp": ["cp", "-r", str(source), str(out)],
        "cp and sync": ["sh", "-c", f"cp -r {source} {out} && sync -f {out}"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks: list[int] = []
    cold = True
    for run in range(options.runs):
        turn = run % len(commands)  # what ran before leaves the disk in another state
        order = [*commands, *commands][turn : turn + len(commands)]
        for name in order:
            shutil.rmtree(out, ignore_errors=True)
            cold = drop_caches() and cold
            took, peak = measure(commands[name])
            seconds[name].append(took)
            if name == "convert":
                peaks.append(peak)
    shutil.rmtree(options.folder)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "machine": machine(),
        "bytes": shape.nbytes,
        "cold_cache": cold,
        "runs": options.runs,
        "seconds": {name: summary(times) for name, times in seconds.items()},
        "peak_rss": max(peaks),
        "throughput_over_cp": median["cp"] / median["convert"],
        "throughput_over_cp_and_sync": median["cp and sync"] / median["convert"],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
