"""What FP8 costs the tiny trained model: log-probabilities of its answers, beside BF16.

    python -m bench.measurements.fp8_accuracy CHECKPOINT… [--json OUT]

Teacher-forced on the CPU engine's graph in BF16: every answer's tokens behind its prompt.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nemotron_build.openvino_model import build_model
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_core.openvino import openvino
from nemotron_core.text import Tokenizer
from tests.tiny_nemotron.answers import load_answers
from tests.tiny_nemotron.dialogues import prompt_ids


@dataclass(frozen=True)
class Accuracy:
    """Over all tokens of all answers."""

    checkpoint: str
    dtype: str
    tokens: int
    mean_log_prob: float
    """Natural logarithm."""
    exact_top1: float
    """Share of the tokens that greedy decoding would choose, too."""


def measure_accuracy(folder: Path, precision: Literal["bf16", "f32"]) -> Accuracy:
    """Of the checkpoint in `folder`, which is of the tiny trained model."""
    checkpoint = Checkpoint.open(folder)
    tokenizer = Tokenizer(checkpoint.tokenizer_path)
    graph = openvino.Core().compile_model(
        build_model(checkpoint, precision),
        "CPU",
        {"INFERENCE_PRECISION_HINT": precision},
    )
    log_probs: list[float] = []
    hits = 0
    for one in load_answers():
        prompt = prompt_ids(tokenizer, one.question.messages)
        ids = [*prompt, *one.token_ids]
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits = graph.create_infer_request().infer(feeds)["logits"][0]
        logits = logits[len(prompt) - 1 : -1].astype(np.float64)
        highest = logits.max(-1, keepdims=True)
        sums = highest[:, 0] + np.log(np.exp(logits - highest).sum(-1))
        rows = np.arange(len(logits))
        log_probs += (logits[rows, one.token_ids] - sums).tolist()
        hits += int((logits.argmax(-1) == one.token_ids).sum())
    return Accuracy(
        checkpoint=folder.name,
        dtype=checkpoint.precision.weights.value,
        tokens=len(log_probs),
        mean_log_prob=float(np.mean(log_probs)),
        exact_top1=hits / len(log_probs),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [asdict(measure_accuracy(folder, "bf16")) for folder in options.checkpoint]
    for row in rows:
        print(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
