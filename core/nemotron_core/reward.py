"""Nemotron-4-340B-Reward: its attributes, its head, and the scores that the head gives.

The reward model is the text model with another head: one linear layer with a bias, on the last
hidden state (after the final norm) of the last token. Its nine outputs are the attributes of
SteerLM, of which the released model was trained on the last five.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nemotron_core.errors import NemotronError

ModelKind = Literal["text", "reward"]
"""What a model makes of its input: text, or the scores of a conversation."""
ATTRIBUTES = (
    "quality",
    "toxicity",
    "humor",
    "creativity",
    "helpfulness",
    "correctness",
    "coherence",
    "complexity",
    "verbosity",
)
"""The head's outputs, in their order."""
WEIGHTS = (0.0, 0.0, 0.0, 0.0, 0.3, 0.74, 0.46, 0.47, -0.33)
"""Weight of each attribute in the reward, from the model's card."""
SCORED = ATTRIBUTES[4:]
"""The attributes that the released model was trained on, which clients get."""
HEAD_NAME = "reward_head.safetensors"
"""Name of the head's file in every checkpoint and engine folder of a reward model."""
NAMES = ("nemotron-4-340b-reward", "nvidia/nemotron-4-340b-reward")
"""Names of the model in OpenAI's API."""
EMPTY_CONVERSATION = ({"role": "user", "content": ""}, {"role": "assistant", "content": ""})
"""The shortest conversation that has a score; it shows whether an engine scores."""


@dataclass(frozen=True)
class RewardHead:
    """The linear layer that turns a hidden state into scores."""

    weight: NDArray[np.float32]
    """[attributes, hidden size]"""
    bias: NDArray[np.float32]
    """[attributes]"""
    attributes: tuple[str, ...] = ATTRIBUTES
    weights: tuple[float, ...] = WEIGHTS
    """Weight of each attribute in the reward."""

    @classmethod
    def read(cls, folder: Path) -> RewardHead:
        """Return the head of a checkpoint or an engine. Raises `NemotronError` if it is damaged."""
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415  # clients have none

        path = folder / HEAD_NAME
        try:
            with safe_open(path, "numpy") as file:
                names = file.metadata() or {}
                head = cls(
                    file.get_tensor("weight"),
                    file.get_tensor("bias"),
                    _texts(json.loads(names["attributes"])),
                    _numbers(json.loads(names["weights"])),
                )
        except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise NemotronError(
                f"cannot be read: {error}", where=path, remedy="convert the reward model again"
            ) from error
        count = len(head.attributes)
        if len(head.weights) != count or len(set(head.attributes)) != count:
            raise NemotronError(
                f"{len(head.weights)} weights and {len(set(head.attributes))} names for {count} "
                "attributes",
                where=path,
                remedy="convert the reward model again",
            )
        is_f32 = head.weight.dtype == head.bias.dtype == np.float32
        if not is_f32 or not (head.weight.shape[:-1] == head.bias.shape == (count,)):
            raise NemotronError(
                f"the head's weight is {list(head.weight.shape)} and its bias "
                f"{list(head.bias.shape)}, for {count} attributes in F32",
                where=path,
                remedy="convert the reward model again",
            )
        return head

    def write(self, folder: Path) -> None:
        """Write `reward_head.safetensors`. Raises `NemotronError` if that is not possible."""
        from safetensors.numpy import save  # noqa: PLC0415

        names = {
            "attributes": json.dumps(self.attributes),
            "weights": json.dumps(self.weights),
        }
        path = folder / HEAD_NAME
        try:
            path.write_bytes(save({"weight": self.weight, "bias": self.bias}, names))
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=path) from error

    def scores(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores [N, attributes] of hidden states [N, hidden size], in F32."""
        return hidden.astype(np.float32) @ self.weight.T + self.bias


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise ValueError("the attributes are no list of names")
    return tuple(value)


def _numbers(value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(
        type(number) in (int, float) and abs(number) < sys.float_info.max for number in value
    ):
        raise ValueError("the weights are no list of finite numbers")
    return tuple(map(float, value))


def scores_text(scores: Mapping[str, float]) -> str:
    """Return scores as the text of a reward model's answer.

    >>> scores_text({"helpfulness": 3.5, "correctness": 0.25})
    'helpfulness:3.5,correctness:0.25'
    """
    return ",".join(f"{name}:{score!r}" for name, score in scores.items())
