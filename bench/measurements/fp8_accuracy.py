"""Accuracy of checkpoints of the tiny trained model, in BF16 and FP8, on its known answers.

The answers are teacher-forced on the CPU engine's graph in BF16: the tokens of each answer follow
its prompt, and each token is compared with the graph's prediction for its position.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nemotron_build.openvino_model import build_model
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_core.openvino import openvino
from nemotron_core.text import Tokenizer
from tests.tiny_nemotron.answers import load_answers
from tests.tiny_nemotron.dialogues import prompt_ids


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one checkpoint over all tokens of all answers."""

    checkpoint: str
    dtype: str
    tokens: int
    mean_log_prob: float
    """Mean natural logarithm of the probabilities of the answers' tokens."""
    exact_top1: float
    """Fraction of the tokens that greedy decoding also chooses."""
    answers: int
    exact_answers: int
    """Number of answers of which greedy decoding chooses every token."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, nargs="+", help="checkpoint of the tiny model")
    parser.add_argument("--answers", type=int, help="number of answers; default: all")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "rows": [
            asdict(measure_accuracy(folder, "bf16", options.answers))
            for folder in options.checkpoint
        ]
    }


def measure_accuracy(
    folder: Path, precision: Literal["bf16", "f32"], answer_count: int | None = None
) -> Accuracy:
    """Return the accuracy of a checkpoint of the tiny trained model, computed in `precision`.

    `answer_count` limits the number of answers; `None` takes all.
    """
    checkpoint = Checkpoint.open(folder)
    tokenizer = Tokenizer(checkpoint.tokenizer_path)
    graph = openvino.Core().compile_model(
        build_model(checkpoint, precision),
        "CPU",
        {"INFERENCE_PRECISION_HINT": precision},
    )
    log_probs: list[float] = []
    chosen: list[bool] = []
    exact_answers = 0
    answers = load_answers()[:answer_count]
    for answer in answers:
        prompt = prompt_ids(tokenizer, answer.question.messages)
        ids = [*prompt, *answer.token_ids]
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
        log_probs += (logits[rows, answer.token_ids] - sums).tolist()
        matches = logits.argmax(-1) == answer.token_ids
        chosen += matches.tolist()
        exact_answers += bool(matches.all())
    return Accuracy(
        checkpoint=folder.name,
        dtype=checkpoint.precision.weights.value,
        tokens=len(log_probs),
        mean_log_prob=float(np.mean(log_probs)),
        exact_top1=sum(chosen) / len(chosen),
        answers=len(answers),
        exact_answers=exact_answers,
    )
