"""The CPU engine with weights in BF16, INT8 and INT4: speed, memory and agreement.

Speed is that of a random model in the true shape of a 4B (Nemotron-Mini-4B-Instruct), or of fewer
of its layers (`--layers`), asked as in `cpu_peers`: each engine is started anew in every run, in
turn. The limit is the bandwidth with which the cores read memory, over the bytes that a token
reads, measured in turn with decoding. With `--llama-cpp`, the same model in Q4_K_M decodes in
llama.cpp in the same run: a folder with its programs (`llama-quantize`, `llama-bench`) and
`convert_hf_to_gguf.py`.

Agreement is that of the tiny model's engines with its BF16 engine, by `nemotron compare` under
`nemotron serve`: mean KL and top-1 agreement over the tests' dialogues.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.measurements.cpu_peers import large_tokenizer, run_worker
from bench.measurements.machine import ROOT
from bench.measurements.random_nemo import Shape, write_nemo
from bench.measurements.timing import in_turn, summary
from nemotron_build.engine_folder import build_engine
from nemotron_build.hardware import Hardware
from nemotron_build.plan import make_plan
from nemotron_build.profile import load_profile, with_weights
from nemotron_build.weights import Weights
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import Format
from nemotron_core.family import FAMILY, VOCABULARY

MODEL = "nemotron-mini-4b-instruct"
WEIGHTS: tuple[Weights, ...] = ("bf16", "int8", "int4")
TINY = ROOT / "tests" / "tiny_nemotron"
PROFILE = "cpu"
QUANTIZED = "Q4_K_M"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=32, help="layers of the model, default 32")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="rows of its tables")
    parser.add_argument("--batches", default="", help="numbers of prompts at once: 8,32")
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama.cpp's programs")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    shape = FAMILY[MODEL].config
    prepare(options)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in WEIGHTS}
    peer: list[float] = []
    for run, name in in_turn(options.runs, [*WEIGHTS, *(["peer"] if options.llama_cpp else [])]):
        if name == "peer":
            peer.append(llama_cpp(options.llama_cpp, options.work))
            print(f"{run + 1}: llama.cpp {peer[-1]:.2f} tokens/s", flush=True)
            continue
        runs[name].append(
            run_worker(
                sys.executable,
                "openvino",
                options.work / name,
                vocabulary=options.vocabulary,
                batches=options.batches,
            )
        )
        print(f"{run + 1}: {name} {json.dumps(runs[name][-1])}", flush=True)
    config = Checkpoint.open(options.work / "checkpoint").config
    return {
        "model": MODEL,
        "layers": options.layers,
        "of_layers": shape.num_layers,
        "vocabulary": options.vocabulary,
        "engines": {name: speeds(config, name, runs[name]) for name in WEIGHTS},
        "llama_cpp": {QUANTIZED: summary(peer)} if peer else None,
        "agreement": {name: agreement(options.work, name) for name in WEIGHTS[1:]},
    }


def prepare(options: argparse.Namespace) -> None:
    """Write the model and its engines, unless they are there already."""
    folder: Path = options.work
    shape = FAMILY[MODEL].config
    if not (folder / "checkpoint").exists():
        sizes = Shape(
            layers=options.layers,
            hidden=shape.hidden_size,
            heads=shape.num_heads,
            kv_heads=shape.num_kv_heads,
            vocab=options.vocabulary,
            tp=1,
            mlp=shape.intermediate_size,
            head_size=shape.head_size,
        )
        tokenizer = large_tokenizer(options.vocabulary)
        source = write_nemo(folder / "source", sizes, tokenizer, small=True)
        convert(source, folder / "checkpoint", Options(Parallel(1, 1)))
        if options.llama_cpp:
            convert(source, folder / "hf", Options(Parallel(1, 1), Format.HF))
        shutil.rmtree(source)
    if not (folder / "tiny").exists():
        convert(TINY / "tiny_nemotron.nemo", folder / "tiny", Options(Parallel(1, 1)))
    for name in WEIGHTS:
        profile = with_weights(load_profile(PROFILE), name)
        for checkpoint, engine in (("checkpoint", name), ("tiny", f"tiny-{name}")):
            if not (folder / engine).exists():
                build_engine(folder / checkpoint, folder / engine, profile)


def speeds(config: Any, name: Weights, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rates of an engine, and the fractions of the memory's limit that it reached."""
    pairs = [pair for run in runs for pair in run["decode_with_bandwidth"]]
    bandwidth = statistics.median(bandwidth for _, bandwidth in pairs)
    plan = make_plan(
        with_weights(load_profile(PROFILE), name),
        Hardware("this CPU", 0, bandwidth, {}),
        shape=config.model_shape(),
        vocab_size=config.vocab_size,
    )
    (stage,) = plan.stages
    return {
        "tokens_per_second": {
            load: summary([run["tokens_per_second"][load] for run in runs])
            for load in runs[0]["tokens_per_second"]
        },
        "load_seconds": statistics.median(run["load_seconds"] for run in runs),
        "rss": statistics.median(run["rss"] for run in runs),
        "peak_rss": statistics.median(run["peak_rss"] for run in runs),
        "bytes_read_per_token": stage.read,
        "read_bandwidth": summary([bandwidth for _, bandwidth in pairs]),
        "over_limit": summary([rate * stage.read / bandwidth for rate, bandwidth in pairs]),
    }


def llama_cpp(programs: Path, folder: Path) -> float:
    """Return the tokens per second at which llama.cpp decodes the model in Q4_K_M."""
    whole, small = folder / "model.gguf", folder / f"{QUANTIZED}.gguf"
    if not small.exists():
        script = programs / "convert_hf_to_gguf.py"
        convert_command = [sys.executable, script, folder / "hf", "--outfile", whole]
        subprocess.run([*convert_command, "--outtype", "bf16"], check=True)
        subprocess.run([programs / "llama-quantize", whole, small, QUANTIZED], check=True)
        whole.unlink()
    bench = [programs / "llama-bench", "-m", small, "-p", "0", "-n", "63", "-o", "json"]
    done = subprocess.run(bench, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def agreement(folder: Path, name: str) -> dict[str, Any]:
    """Return what `nemotron compare` finds between the tiny model's engine and the BF16 one."""
    texts = TINY / "dialogues.jsonl"
    saved, output = folder / "saved", folder / f"compared-{name}"
    runs = [
        ("bf16", ["--texts", texts, "--save", saved]),
        (name, ["--against", saved, "-o", output]),
    ]
    ports = [f"--{port}-port=0" for port in ("http", "grpc", "metrics", "health", "gateway")]
    for weights, arguments in runs[1:] if saved.exists() else runs:
        words = [sys.executable, "-m", "nemotron_cli", "compare", *map(str, arguments)]
        inner = f'exec {shlex.join(words)} "$NEMOTRON_GATEWAY"'
        serve = [sys.executable, "-m", "nemotron_cli", "serve", folder / f"tiny-{weights}", *ports]
        subprocess.run([*serve, "--", "sh", "-c", inner], check=True)
    report: dict[str, Any] = json.loads((output / "report.json").read_text())
    return report
