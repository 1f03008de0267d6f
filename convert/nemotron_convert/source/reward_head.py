"""The head of a reward model's `.nemo`, and the settings that it must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemotron_convert.source.arrays import StoredArray
from nemotron_convert.source.settings import OFF, short_text
from nemotron_convert.tensor_map import Place, Split, TensorRule
from nemotron_core.errors import NemotronError
from nemotron_core.reward import ATTRIBUTES, RewardHead

WEIGHT = TensorRule(
    "model.rm_head.weight", "weight", ("attributes", "hidden"), Split.COLUMNS, Place.LAST
)
BIAS = TensorRule("model.rm_head.bias", "bias", ("attributes",), Split.REPLICATED, Place.LAST)
REGRESSION_ONLY = "only Nemotron-4-340B-Reward's kind is converted: the regression of 9 attributes"
FIXED: dict[str, tuple[tuple[object, ...], str]] = {
    "reward_model_type": (("regression", None), "is another kind of reward model"),
    "output_sequence": (OFF, "scores every token"),
    "use_avg_pool": (OFF, "scores the mean of all tokens"),
    "regression.num_attributes": ((len(ATTRIBUTES), None), "has other attributes"),
    "regression.merge_attributes": (OFF, "gives one number in place of the attributes"),
    "reward_standardization.enable": (OFF, "moves and scales the scores"),
}
"""Settings that change what a head computes: the values that are carried out, and what any other
value does."""


@dataclass(frozen=True)
class StoredHead:
    """The head as it is stored: one matrix, split by columns over TP, and a bias."""

    weight: StoredArray
    bias: StoredArray

    @classmethod
    def open(cls, open_tensor: Callable[[TensorRule], StoredArray], hidden_size: int) -> StoredHead:
        """Return the head of a reward model.

        Raises `NemotronError` if it is missing, or is not one of nine attributes.
        """
        head = cls(open_tensor(WEIGHT), open_tensor(BIAS))
        count = len(ATTRIBUTES)
        for array, shape in ((head.weight, (count, hidden_size)), (head.bias, (count,))):
            if array.shape != shape:
                raise NemotronError(
                    f"tensor {array.name} has shape {list(array.shape)}, {list(shape)} is expected",
                    where=array.archive.path,
                    remedy=REGRESSION_ONLY,
                )
        return head

    @property
    def tensors(self) -> dict[str, StoredArray]:
        """Both tensors by Megatron's names."""
        return {WEIGHT.source: self.weight, BIAS.source: self.bias}

    def read(self) -> RewardHead:
        """Read the head, in F32 as it is stored. Raises `NemotronError` if it has NaN or Inf."""
        head = RewardHead(self.weight.read_numbers(), self.bias.read_numbers()[0])
        for array, numbers in ((self.weight, head.weight), (self.bias, head.bias)):
            if not np.isfinite(numbers).all():
                raise NemotronError(
                    f"tensor {array.name} holds NaN or Inf, so every score would",
                    where=array.archive.path,
                    remedy="copy the checkpoint again",
                )
        return head


def reward_faults(settings: Mapping[str, Any]) -> list[str]:
    """Return, as text, each setting of the head that is not carried out."""
    faults = []
    for key, (allowed, effect) in FIXED.items():
        value: Any = settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not any(type(value) is type(other) and value == other for other in allowed):
            faults.append(f"{key}: {short_text(value)} {effect}")
    return faults
