"""`nemotron convert` against NVIDIA ModelOpt's converter, on the same weights.

ModelOpt reads a Hugging Face folder, so it gets the output of `nemotron convert --format hf` for
the `.nemo` that `nemotron convert` reads. Both write a BF16 TensorRT-LLM checkpoint at TP 8, take
turns and start with a cold page cache. ModelOpt is installed in an environment in the work folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.measurements.machine import NEMOTRON, drop_page_cache
from bench.measurements.random_nemo import Shape, write_nemo
from bench.measurements.timing import CommandCost, in_turn, run_command, summary

PACKAGES = ("nvidia-modelopt==0.47.0", "transformers==4.57.6", "accelerate", "sentencepiece")
TORCH = "torch==2.13.0+cpu"
EXPORT = """
import sys, torch
from transformers import AutoModelForCausalLM
from modelopt.torch.export import export_tensorrt_llm_checkpoint
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
with torch.inference_mode():
    export_tensorrt_llm_checkpoint(
        model, "gpt", torch.bfloat16, export_dir=sys.argv[2], inference_tensor_parallel=8
    )
"""


def modelopt_python(folder: Path) -> Path:
    """Return the Python of an environment with ModelOpt, installed in `folder` if needed."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for packages in ([TORCH], PACKAGES):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=6, help="layers of the model, default 6")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    python = modelopt_python(options.work / "modelopt")
    source, hf, out = (options.work / name for name in ("source", "hf", "out"))
    for folder in (source, hf, out):
        shutil.rmtree(folder, ignore_errors=True)
    shape = Shape(layers=options.layers)
    write_nemo(source, shape)
    subprocess.run([NEMOTRON, "convert", source, "-o", hf, "--format", "hf"], check=True)
    commands = {
        "nemotron convert": [NEMOTRON, "convert", str(source), "-o", str(out), "--tp", "8"],
        "ModelOpt": [str(python), "-c", EXPORT, str(hf), str(out)],
    }
    costs: dict[str, list[CommandCost]] = {name: [] for name in commands}
    for _, name in in_turn(options.runs, list(commands)):
        shutil.rmtree(out, ignore_errors=True)
        drop_page_cache()
        costs[name].append(run_command(commands[name]))
    for folder in (source, hf, out):
        shutil.rmtree(folder)
    seconds = {name: summary([cost.seconds for cost in costs[name]]) for name in commands}
    peak_rss = {name: max(cost.peak_rss for cost in costs[name]) for name in commands}
    converter, modelopt = commands
    return {
        "bytes": shape.nbytes,
        "packages": PACKAGES,
        "seconds": seconds,
        "peak_rss": peak_rss,
        "modelopt_time_over_ours": seconds[modelopt]["median"] / seconds[converter]["median"],
        "modelopt_rss_over_ours": peak_rss[modelopt] / peak_rss[converter],
    }
