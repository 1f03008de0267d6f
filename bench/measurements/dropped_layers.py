"""A draft for a model: its first layers, its embedding and its head."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
LAYER = re.compile(r"model\.layers\.(\d+)\.")
OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
"""Ends of the names of a layer's weights whose products are added to the hidden state."""


def drop_layers(source: Path, target: Path, layers: int) -> None:
    """Write a Hugging Face folder with the first `layers` of the decoder layers of another one."""
    _copy(source, target, num_hidden_layers=layers)
    tensors = {
        name: tensor
        for name, tensor in load_file(source / WEIGHTS).items()
        if (number := layer_of(name)) is None or number < layers
    }
    save_file(tensors, target / WEIGHTS, {"format": "pt"})


def damp_layers(source: Path, target: Path, layers: int, factor: float) -> None:
    """Write a Hugging Face folder in which the layers after the first `layers` matter less.

    What they add to the hidden state is multiplied by `factor`.
    """
    _copy(source, target)
    tensors = load_file(source / WEIGHTS)
    for name, tensor in tensors.items():
        if name.endswith(OUTPUTS) and (layer_of(name) or 0) >= layers:
            tensor.mul_(factor)
    save_file(tensors, target / WEIGHTS, {"format": "pt"})


def layer_of(name: str) -> int | None:
    """Return the number of the decoder layer that a tensor belongs to, or `None`."""
    match = LAYER.match(name)
    return int(match[1]) if match else None


def _copy(source: Path, target: Path, **changes: int) -> None:
    """Make the folder of a model without its weights."""
    target.mkdir()
    for name in ("tokenizer.model", "generation_config.json"):
        shutil.copyfile(source / name, target / name)
    config = json.loads((source / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
