"""The tiny model with wider heads, which computes the same: vLLM has no CPU kernel for its own.

A head gets zeros after its numbers in q, k and v. Its rotary part keeps its size, so its fraction
shrinks. Attention divides scores by the square root of the head's size, so q grows as that does:
by a power of two, which is exact in BF16.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nemotron_convert.target.manifest import read_manifest
from nemotron_core.files import hash_file

HEAD_SIZE = 64
WEIGHTS = "model.safetensors"


def widen_heads(source: Path, target: Path, weights: str = WEIGHTS) -> None:
    """Copy a Hugging Face folder to `target`, with heads of 64. All heads are in one file."""
    config = json.loads((source / "config.json").read_text())
    old = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    growth = math.isqrt(HEAD_SIZE // old)
    assert growth**2 * old == HEAD_SIZE
    tensors = load_file(source / weights)
    for name, weight in tensors.items():
        kind = name.rpartition(".self_attn.")[2]
        if kind in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
            wide = _pad(weight.reshape(-1, old, weight.shape[1]), dim=1)
            tensors[name] = wide.flatten(0, 1) * (growth if kind[0] == "q" else 1)
        elif kind == "o_proj.weight":
            tensors[name] = _pad(weight.reshape(weight.shape[0], -1, old), dim=2).flatten(1)
    shutil.copytree(source, target, ignore=lambda *_: [weights, "config.json"])
    save_file(tensors, target / weights, {"format": "pt"})
    config["head_dim"] = HEAD_SIZE
    _scale(config, "partial_rotary_factor", old / HEAD_SIZE)
    (target / "config.json").write_text(json.dumps(config, indent=2))
    manifest = read_manifest(source)
    files = {name: hash_file(target / name) for name in manifest.files}
    manifest.model_copy(update={"files": files}).write(target)


def _pad(heads: torch.Tensor, dim: int) -> torch.Tensor:
    shape = list(heads.shape)
    shape[dim] = HEAD_SIZE - shape[dim]
    return torch.cat([heads, heads.new_zeros(shape)], dim)


def _scale(config: dict[str, Any], key: str, factor: float) -> None:
    for name, entry in config.items():
        if name == key:
            config[name] = entry * factor
        elif isinstance(entry, dict):
            _scale(entry, key, factor)
