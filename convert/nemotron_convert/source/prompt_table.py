"""The vectors that a P-tuning puts in front of the prompt, computed from its MLP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.source.contents import Contents
from nemotron_convert.tensor_map import Place, Split, TensorRule
from nemotron_core.errors import NemotronError

PREFIX = "model.embedding.adapter_layer.ptuning_adapter."
TENSORS = {
    "embedding.weight": (("tokens", "embedding"), Split.REPLICATED),
    "first.weight": (("bottleneck", "embedding"), Split.ROWS),
    "first.bias": (("bottleneck",), Split.COLUMNS),
    "second.weight": (("hidden", "bottleneck"), Split.COLUMNS),
    "second.bias": (("hidden",), Split.REPLICATED),
}
"""The tensors of the MLP, with the names of their sizes and their split over TP ranks."""
SETTINGS = {
    "tokens": "virtual_tokens",
    "embedding": "embedding_dim",
    "bottleneck": "bottleneck_dim",
}
"""The settings of these sizes; a missing rank does not show otherwise."""
TABLE = "inference_table"
OLD_TABLE = f"the stored {TABLE} is not what the MLP computes"
TOLERANCE = 0.02
"""Largest difference, as a fraction of the largest number, of a table that was filled in BF16."""


@dataclass(frozen=True)
class PromptTable:
    """The vectors of a P-tuning's virtual tokens, which stand before the whole prompt."""

    vectors: NDArray[np.float32]
    """[tokens, hidden], second(gelu_tanh(first(embedding)))."""
    is_stored: bool
    """Whether the file's own table holds the same. It is filled only when the model is evaluated,
    so a file that was saved after further steps has an older one, or none."""

    def __str__(self) -> str:
        return f"{len(self.vectors)} virtual tokens"


def read_prompt_table(contents: Contents) -> PromptTable:
    """Return the vectors of a P-tuning.

    Raises `NemotronError` if a tensor is missing, has a wrong shape, or holds NaN or Inf.
    """
    sizes = {"hidden": contents.settings.model.hidden_size}
    peft = contents.settings.raw.get("peft")
    tuning = peft.get("p_tuning") if isinstance(peft, dict) else None
    for size_name, setting in SETTINGS.items():
        if isinstance(tuning, dict) and type(tuning.get(setting)) is int:
            sizes[size_name] = tuning[setting]
    matrices: dict[str, NDArray[np.float32]] = {}
    for name, (shape, split) in TENSORS.items():
        array = contents.tensors.open(TensorRule(PREFIX + name, "", shape, split, Place.FIRST))
        for key, size in zip(shape, array.shape, strict=True):
            if sizes.setdefault(key, size) != size:
                raise NemotronError(
                    f"tensor {array.name} has shape {list(array.shape)}, but {key} is {sizes[key]}",
                    where=contents.archive.path,
                )
        matrices[name] = array.read_numbers()
        if not np.isfinite(matrices[name]).all():
            raise NemotronError(
                f"tensor {array.name} holds NaN or Inf", where=contents.archive.path
            )
    inner = matrices["embedding.weight"] @ matrices["first.weight"].T + matrices["first.bias"]
    vectors = _gelu(inner) @ matrices["second.weight"].T + matrices["second.bias"]
    return PromptTable(vectors, _has_table(contents, vectors))


def _gelu(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return GELU in its tanh form: Hendrycks and Gimpel, arXiv:1606.08415."""
    scale = np.float32(np.sqrt(2 / np.pi))
    result: NDArray[np.float32] = (
        values * (1 + np.tanh(scale * (values + np.float32(0.044715) * values**3))) / 2
    )
    return result


def _has_table(contents: Contents, vectors: NDArray[np.float32]) -> bool:
    """Return whether the stored table, if there is one, holds these vectors."""
    if PREFIX + TABLE not in contents.tensors.names:
        return False
    rule = TensorRule(PREFIX + TABLE, "", ("tokens", "hidden"), Split.REPLICATED, Place.FIRST)
    stored = contents.tensors.open(rule).read_numbers()
    if stored.shape != vectors.shape:
        return False
    limit = TOLERANCE * float(np.abs(vectors).max())
    return bool((np.abs(stored - vectors) <= limit).all())
