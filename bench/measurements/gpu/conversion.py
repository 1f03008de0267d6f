"""All measurements of the converter that a machine with GPUs can make, one after the other.

    PYTHON -m bench.measurements.gpu.conversion FOLDER [--work DISK] [--tiny]

Writes one record each to FOLDER: calibration of a layer of Nemotron-4-340B on one GPU and on all
(`calibrate_speed --true-size`), start-up and hashes, and the conversion against `cp` with several
numbers of threads (`convert_speed`). Needs the project's environment with a PyTorch for the GPUs,
and 30 GB on the disk of `--work`. A measurement that fails is reported, and the next one runs.
`--tiny` tries the script on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.measurements.__main__ import main as run

MEASUREMENTS: dict[str, Sequence[str]] = {
    "calibrate_speed_gpu": ("calibrate_speed", "--true-size", "--devices", "cuda:0"),
    "calibrate_speed_gpus": ("calibrate_speed", "--true-size"),
    "convert_startup": ("convert_startup",),
    "hashing": ("hashing", "--threads", "1", "8", "16"),
    "convert_speed": ("convert_speed", "--gigabytes", "7.5", "--jobs", "2", "4", "8", "16"),
}
"""Name of the record, measurement and arguments, the most important first."""
TINY: dict[str, Sequence[str]] = {
    "calibrate_speed": ("calibrate_speed", "--sequences", "2", "--length", "16"),
    "convert_startup": ("convert_startup",),
}
RUNS = "3"


def main() -> int:
    """Return the number of measurements that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    failures = 0
    measurements = dict(TINY if options.tiny else MEASUREMENTS)
    if torch.cuda.device_count() == 1:
        measurements.pop("calibrate_speed_gpus", None)
    for name, arguments in measurements.items():
        runs = "1" if options.tiny else RUNS
        with tempfile.TemporaryDirectory(dir=options.work) as work:
            record = str(options.folder / f"{name}.json")
            try:
                failures += run([*arguments, "--runs", runs, "--work", work, "--json", record])
            except (Exception, SystemExit):
                failures += 1
                print(f"{name} failed:", file=sys.stderr)
                traceback.print_exc()
    return failures


if __name__ == "__main__":
    sys.exit(main())
