"""How far FP8 moves the tiny model's distributions on one card: KL divergence from BF16 by vLLM.

    python -m bench.measurements.gpu.kl RESULT.json [--python VLLM_PYTHON] [--cpu]

The positions are those of prompts with their answers; at each one, KL(BF16 ‖ FP8) over the whole
vocabulary, in nats. The model is far too small to say anything of a large one: this shows that the
card computes what the checkpoint says. vLLM's CPU build has no FP8, so `--cpu` compares with
weights that were rounded to E4M3 and computes in BF16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from bench.measurements.gpu.lane import add_options, hf_folder, write_result
from bench.measurements.machine import ROOT
from nemotron_core.text import Tokenizer
from tests.tiny_nemotron.answers import load_answers
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.tiny_nemotron.nemo_file import NEMO
from tests.vllm.wide_heads import WEIGHTS, widen_heads

EVERY = 4
"""One of so many answers is scored: vLLM's tables of the whole vocabulary are Python objects."""
LARGEST = 448.0
"""Largest number in E4M3."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bf16, fp8 = folders(work, is_cpu=options.cpu)
        sequences = token_ids(Tokenizer(bf16 / "tokenizer.model"))
        (work / "ids.json").write_text(json.dumps(sequences))
        expected, actual = (log_probs(work, model, options) for model in (bf16, fp8))
    write_result(options, {"sequences": len(sequences), **divergence(expected, actual)})


def folders(work: Path, *, is_cpu: bool) -> tuple[Path, Path]:
    """Return the model in the Hugging Face layout twice, in BF16 and in FP8."""
    bf16 = hf_folder(NEMO, work / "bf16", "bf16")
    if not is_cpu:
        return bf16, hf_folder(NEMO, work / "fp8", "fp8")
    wide, rounded = work / "wide", work / "rounded"
    widen_heads(bf16, wide)
    rounded.mkdir()
    for file in wide.iterdir():
        if file.name != WEIGHTS:
            (rounded / file.name).hardlink_to(file)
    tensors = load_file(wide / WEIGHTS)
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            tensors[name] = round_to_e4m3(weight)
    save_file(tensors, rounded / WEIGHTS, {"format": "pt"})
    return wide, rounded


def round_to_e4m3(weight: torch.Tensor) -> torch.Tensor:
    """Return what FP8 weights with one scale for the tensor stand for, in the tensor's own type."""
    scale = weight.float().abs().max() / LARGEST
    return ((weight.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(weight.dtype)


def token_ids(tokenizer: Tokenizer) -> list[list[int]]:
    return [
        [*prompt_ids(tokenizer, exact.question.messages), *exact.token_ids]
        for exact in load_answers()[::EVERY]
    ]


def log_probs(work: Path, model: Path, options: argparse.Namespace) -> np.ndarray[Any, Any]:
    """Return vLLM's log-probabilities [N, V], computed in a process of its environment."""
    out = work / f"{model.name}.npy"
    command = [str(options.python or sys.executable), "-m", "bench.measurements.gpu.score"]
    command += [str(model), str(work / "ids.json"), str(out), *["--cpu"] * options.cpu]
    subprocess.run(command, cwd=ROOT, env=os.environ, check=True)
    return np.asarray(np.load(out), np.float64)


def divergence(
    expected: np.ndarray[Any, Any], actual: np.ndarray[Any, Any]
) -> dict[str, float | int]:
    """Return the KL divergence of the rows in nats, and how often both prefer the same token."""
    divergences = (np.exp(expected) * (expected - actual)).sum(-1)
    return {
        "positions": len(expected),
        "mean_kl": float(divergences.mean()),
        "p99_kl": float(np.quantile(divergences, 0.99)),
        "largest_kl": float(divergences.max()),
        "same_top_token": float((expected.argmax(-1) == actual.argmax(-1)).mean()),
    }


if __name__ == "__main__":
    main()
