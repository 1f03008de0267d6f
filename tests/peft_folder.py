"""Random LoRA adapters in PEFT's layout, and the same change of a model in transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import NemotronForCausalLM

RANK, ALPHA = 4, 8
PREFIX = "base_model.model.model.layers"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def write_adapter(
    folder: Path,
    model: NemotronForCausalLM,
    projections: Sequence[str],
    *,
    seed: int,
    scale: float = 0.3,
    **config: Any,
) -> Path:
    """Write an adapter of some projections of all layers, and return its folder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for index, layer in enumerate(model.model.layers):
        for name in projections:
            part = "self_attn" if name in ATTENTION else "mlp"
            outer, inner = getattr(getattr(layer, part), name).weight.shape
            for letter, shape in (("A", (RANK, inner)), ("B", (outer, RANK))):
                factor = torch.randn(shape, generator=generator) * scale / shape[1] ** 0.5
                key = f"{PREFIX}.{index}.{part}.{name}.lora_{letter}.weight"
                tensors[key] = factor.bfloat16()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "use_dora": False}
    sizes = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(projections)}
    (folder / "adapter_config.json").write_text(json.dumps(plain | sizes | config))
    return folder


def merge(model: NemotronForCausalLM, folder: Path) -> NemotronForCausalLM:
    """Add an adapter to a model's weights, W + alpha / r · B · A in F32, and return the model."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for key, a in tensors.items():
        if ".lora_A." in key:
            b = tensors[key.replace("lora_A", "lora_B")].float()
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            weight = model.get_parameter(name)
            weight.data += ALPHA / RANK * (b @ a.float()).to(weight.dtype)
    return model
