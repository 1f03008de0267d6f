"""The runner of all measurements: `python -m bench.measurements NAME [options]`.

It gives each measurement its options and a folder to work in, and writes its results with the
machine, the date, the commit and the arguments to `bench/measurements/results/NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.measurements.machine import current_commit, describe_machine
from bench.measurements.records import RESULTS, Record
from nemotron_bench.machine import now, versions

PROGRAM = "python -m bench.measurements"
RUNNER_OPTIONS = ("work", "json")
"""Options that do not change what is measured, so the record does not have them."""


@dataclass(frozen=True)
class Measurement:
    """One entry of the table of measurements."""

    summary: str
    runs: int | None = None
    """Default of `--runs`, or `None` for a measurement that has no repeated runs."""


MEASUREMENTS: Mapping[str, Measurement] = {
    "convert_speed": Measurement("`nemotron convert` against `cp -r` of the same bytes", 6),
    "convert_scaling": Measurement("time and peak RSS of `nemotron convert` over the bytes", 3),
    "convert_startup": Measurement(
        "start-up of `nemotron convert` against Python's and NumPy's", 20
    ),
    "convert_merge": Measurement("`nemotron convert` with and without a LoRA", 3),
    "convert_index": Measurement("reading the index of a torch_dist checkpoint, over its size", 1),
    "hashing": Measurement("SHA-256 against BLAKE3, on one thread and on several", 5),
    "convert_modelopt": Measurement("`nemotron convert` against NVIDIA ModelOpt's converter", 5),
    "fp8_quantize": Measurement("quantizing BF16 to E4M3 on one core, against PyTorch", 9),
    "fp8_accuracy": Measurement("log-probabilities of the tiny model's answers by precision"),
    "fp8_compare": Measurement("`nemotron compare` of the tiny model in FP8 and BF16"),
    "calibrate_speed": Measurement("a layer of calibration against the disk and its products", 3),
    "calibrate_memory": Measurement("peak RSS and time of calibration over the layers", 3),
    "cpu_peers": Measurement("the CPU engine against transformers, vLLM and the memory limit", 3),
    "reward_rate": Measurement("a reward model beside the engine's own prefill", 5),
    "cpu_weights": Measurement("the CPU engine with INT8 and INT4 weights, by BF16", 3),
    "drafts": Measurement("the CPU engine with a draft, beside itself without one", 3),
    "startup": Measurement("time from `nemotron serve` to the first answer, by step", 5),
    "serving": Measurement("tokens and CPU of the serving path, against an earlier commit", 5),
    "hops": Measurement("the fraction of the CPU engine's tokens that each hop carries", 3),
    "hangups": Measurement("clients that leave, reset, cancel and die; kills of the engine"),
    "gateway_overhead": Measurement("the gateway against Triton's own HTTP", 5),
    "idle_connections": Measurement("chats beside hundreds of connections that send nothing", 5),
    "perf_analyzer_check": Measurement("`nemotron bench`'s load against perf_analyzer's", 5),
    "stress": Measurement("many streams with cancellations, disconnects and bad requests"),
    "batch_speed": Measurement("`nemotron batch` beside a plain loop and an earlier commit", 3),
    "batch_chaos": Measurement("`nemotron batch` while client and server are killed"),
}
"""Measurements by name. Each is the module of that name here, which has two functions.

`add_options(parser)` adds the measurement's own options; `measure(options)` returns its results,
a JSON object. A key `faults` with a non-empty list makes the runner fail.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one measurement. Returns the exit code: 1 if the results have faults."""
    arguments = sys.argv[1:] if arguments is None else arguments
    selection = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} NAME [options], {PROGRAM} --list, {PROGRAM} NAME --help",
        description="Measure one part of this project and record the results.",
    )
    selection.add_argument("name", nargs="?", choices=MEASUREMENTS, metavar="NAME")
    selection.add_argument("--list", action="store_true", help="list all measurements")
    selected = selection.parse_args(arguments[:1])
    if selected.name is None:
        print("\n".join(f"{name:20} {entry.summary}" for name, entry in MEASUREMENTS.items()))
        return 0
    module = import_module(f"bench.measurements.{selected.name}")
    options = options_parser(selected.name, module).parse_args(arguments[1:])
    record = run(selected.name, module, options)
    print(json.dumps(record.results, indent=1, ensure_ascii=False))
    record.write(options.json)
    print(f"wrote {options.json}")
    return 1 if record.results.get("faults") else 0


def options_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """Return the parser of a measurement's options."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if (runs := MEASUREMENTS[name].runs) is not None:
        parser.add_argument("--runs", type=int, default=runs, help=f"default {runs}")
    parser.add_argument(
        "--work", type=Path, help="folder for files, which is kept; default: a temporary folder"
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=RESULTS / f"{name}.json",
        help=f"file to write; default {name}.json in bench/measurements/results",
    )
    module.add_options(parser)
    return parser


def run(name: str, module: ModuleType, options: argparse.Namespace) -> Record:
    """Run a measurement in its work folder and return its record."""
    arguments = {
        key: plain(value) for key, value in vars(options).items() if key not in RUNNER_OPTIONS
    }
    date, commit = now(), current_commit()
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    with nullcontext(options.work) if options.work else tempfile.TemporaryDirectory() as folder:
        options.work = Path(folder)
        results = module.measure(options)
    return Record(name, describe_machine(), date, commit, versions(), arguments, results)


def plain(value: Any) -> Any:
    """Return an argument as JSON; of a path only the last part, so that records can be shared."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.name if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
