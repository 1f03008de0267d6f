"""Creates `head.npz`: `python -m tests.tiny_reward.make`.

The tiny Nemotron stays as it is. A linear head is fitted, by ridge regression in F64, to the last
hidden states of its dialogues and of beginnings of them, so that two attributes say something that
can be measured. The others are constant.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nemotron_core.text import Message, Tokenizer
from tests.tiny_nemotron.dialogues import load_dialogues
from tests.tiny_nemotron.nemo_file import read_tokenizer
from tests.tiny_nemotron.reference import load_hf_model
from tests.tiny_reward.nemo_file import HEAD

ATTRIBUTES = 9
VERBOSITY, COMPLEXITY = 8, 7
MIDDLE = 2.0
"""Score of every attribute that is not trained."""
BATCH = 32
PARTS = (0.3, 1.0)
"""Fractions of an answer that are scored too."""
RIDGE = 1e-2
TESTED = 5
"""One dialogue in so many is not trained on."""


def verbosity(answer: str) -> float:
    """Return 0 for an answer of 1 character, 4 for one of 256."""
    return min(4.0, float(np.log2(max(1, len(answer)))) / 2)


def complexity(answer: str) -> float:
    """Return half of the mean length of a word."""
    words = answer.split()
    return min(4.0, sum(map(len, words)) / max(1, len(words)) / 2)


TARGETS: dict[int, Callable[[str], float]] = {VERBOSITY: verbosity, COMPLEXITY: complexity}


def conversations() -> Iterator[tuple[int, list[Message]]]:
    """Yield conversations that end with a part of an answer, with the dialogue's number."""
    for number, dialogue in enumerate(load_dialogues()):
        messages: list[Message] = [
            {"role": message.role, "content": message.content} for message in dialogue
        ]
        *before, last = messages
        for part in PARTS:
            content = last["content"][: max(1, round(part * len(last["content"])))]
            yield number, [*before, {"role": "assistant", "content": content}]


@torch.inference_mode()
def hidden_states(sequences: list[list[int]]) -> NDArray[np.float64]:
    """Return the last hidden state of each sequence, after the final norm.

    Sequences are padded at their end, where causal attention lets no token see it.
    """
    model = load_hf_model().model
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    states = np.empty((len(sequences), model.config.hidden_size))
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        ids = torch.zeros(len(rows), len(sequences[rows[-1]]), dtype=torch.long)
        for row, i in enumerate(rows):
            ids[row, : len(sequences[i])] = torch.tensor(sequences[i])
        hidden = model(input_ids=ids).last_hidden_state
        last = torch.tensor([len(sequences[i]) - 1 for i in rows])
        states[rows] = hidden[torch.arange(len(rows)), last].double().numpy()
    return states


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.model")
        path.write_bytes(read_tokenizer())
        tokenizer = Tokenizer(path)
    numbers, messages = zip(*conversations(), strict=True)
    states = hidden_states([tokenizer.encode_scored(conversation) for conversation in messages])
    is_tested = np.array(numbers) % TESTED == 0
    weight = np.zeros((ATTRIBUTES, states.shape[1]))
    bias = np.full(ATTRIBUTES, MIDDLE)
    for attribute, target in TARGETS.items():
        wanted = np.array([target(conversation[-1]["content"]) for conversation in messages])
        weight[attribute], bias[attribute] = _fit(states[~is_tested], wanted[~is_tested])
        scores = states[is_tested] @ weight[attribute] + bias[attribute]
        correlation = np.corrcoef(scores, wanted[is_tested])[0, 1]
        print(f"{target.__name__}: correlation {correlation:.3f} on {is_tested.sum()} unseen")
    np.savez(HEAD, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _fit(
    states: NDArray[np.float64], wanted: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    mean, spread = states.mean(0), states.std(0).mean()
    centred = (states - mean) / spread
    square = centred.T @ centred + RIDGE * len(states) * np.eye(states.shape[1])
    weight = np.linalg.solve(square, centred.T @ (wanted - wanted.mean())) / spread
    return weight, float(wanted.mean() - weight @ mean)


if __name__ == "__main__":
    sys.exit(main())
