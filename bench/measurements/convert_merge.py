"""`nemotron convert` of one model with and without a LoRA of all linear layers, in turn.

Merging costs two products for each band of a matrix, and the factors of two layers in memory.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from bench.measurements.machine import NEMOTRON, drop_page_cache
from bench.measurements.random_nemo import LAYERS, Shape, write_nemo
from bench.measurements.timing import in_turn, run_command, summary

MODULES = {
    "self_attention.adapter_layer.lora_kqv_adapter": "self_attention.linear_qkv.weight",
    "self_attention.adapter_layer.lora_dense_attention_adapter": (
        "self_attention.linear_proj.weight"
    ),
    "mlp.adapter_layer.lora_hto4h_adapter": "mlp.linear_fc1.weight",
    "mlp.adapter_layer.lora_4htoh_adapter": "mlp.linear_fc2.weight",
}
"""NeMo's LoRA modules and the matrices that they change."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=8, help="0.34 GB each, default 8")
    parser.add_argument("--rank", type=int, default=32)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    shape = Shape(layers=options.layers)
    source, lora, out = (options.work / name for name in ("source", "lora", "out"))
    for folder in (source, lora):
        shutil.rmtree(folder, ignore_errors=True)
    write_nemo(source, shape)
    write_lora(lora, source, shape, options.rank)
    rest = ["-o", str(out), "--tp", "8"]
    commands = {
        "without adapters": [NEMOTRON, "convert", str(source), *rest],
        "with a LoRA": [NEMOTRON, "convert", "--base", str(source), str(lora), *rest],
    }
    costs: dict[str, list[Any]] = {name: [] for name in commands}
    for _, name in in_turn(options.runs, list(commands)):
        shutil.rmtree(out, ignore_errors=True)
        drop_page_cache()
        costs[name].append(run_command(commands[name]))
        print(name, costs[name][-1], flush=True)
    for folder in (source, lora, out):
        shutil.rmtree(folder)
    return {
        "bytes": shape.nbytes,
        "rank": options.rank,
        "seconds": {name: summary([cost.seconds for cost in c]) for name, c in costs.items()},
        "peak_rss": {name: max(cost.peak_rss for cost in c) for name, c in costs.items()},
    }


def write_lora(folder: Path, base: Path, shape: Shape, rank: int) -> None:
    """Write a LoRA of random BF16 factors for the model in `base`, as one rank saves it."""
    folder.mkdir(parents=True)
    config = yaml.safe_load((base / "model_config.yaml").read_text())
    tuning = {"target_modules": ["all"], "adapter_dim": rank, "alpha": rank, "variant": "nemo"}
    config["peft"] = {"peft_scheme": "lora", "lora_tuning": tuning}
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config))
    for tokenizer in base.glob("*.model"):
        shutil.copyfile(tokenizer, folder / tokenizer.name)
    generator = torch.Generator().manual_seed(1)
    state = {}
    for layer in range(shape.layers):
        for module, weight in MODULES.items():
            (_, rows, columns), _ = shape.arrays[LAYERS + weight]
            for name, size in (("in", (rank, columns)), ("out", (rows, rank))):
                values = torch.randn(size, generator=generator, dtype=torch.float32) / 64
                state[f"{LAYERS}{layer}.{module}.linear_{name}.weight"] = values.bfloat16()
    torch.save(state, folder / "model_weights.ckpt")
