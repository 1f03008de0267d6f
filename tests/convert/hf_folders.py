"""Hugging Face folders as transformers writes them, and what people have instead of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import NemotronConfig, NemotronForCausalLM

from bench.measurements.random_nemo import random_tokenizer
from nemotron_core.model_config import ModelConfig
from tests.convert.nemo import GOLDEN

HF_TINY = GOLDEN / "hf_tiny"
"""The golden `.nemo` as NVIDIA's and Hugging Face's own programs wrote it."""
Edit = Callable[[dict[str, Any]], None]


def copy_tiny(folder: Path) -> Path:
    """Copy the golden folder to `folder`, which must not exist."""
    return Path(shutil.copytree(HF_TINY, folder))


def edit_json(path: Path, edit: Edit) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    edit(content)
    path.write_text(json.dumps(content))


def edit_config(folder: Path, **keys: object) -> Path:
    edit_json(folder / "config.json", lambda config: config.update(keys))
    return folder


def set_template(folder: Path, template: object, **keys: object) -> Path:
    edit_json(
        folder / "tokenizer_config.json",
        lambda config: config.update(keys | {"chat_template": template}),
    )
    return folder


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return folder


def split_files(folder: Path, count: int = 3) -> Path:
    """Divide the weights over `count` files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for i, file in enumerate(names):
        part = dict(list(tensors.items())[i::count])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def random_folder(
    folder: Path, shape: ModelConfig, *, layers: int, vocab: int, tied: bool = False
) -> NemotronForCausalLM:
    """Write a random model of a shape as transformers does, and return it in BF16."""
    torch.manual_seed(1)
    config = NemotronConfig(
        vocab_size=vocab,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.max_positions,
        norm_eps=shape.norm_eps,
        partial_rotary_factor=shape.rotary_pct,
        rope_theta=shape.rotary_base,
        tie_word_embeddings=tied,
    )
    model = NemotronForCausalLM(config).to(torch.bfloat16).eval()
    with torch.no_grad():  # transformers begins norms with 1 and 0, which would hide a mistake
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.normal_(0, 0.1)
    model.save_pretrained(folder, max_shard_size="100MB")
    (folder / "tokenizer.model").write_bytes(random_tokenizer(vocab))
    return model
