"""The expected TensorRT-LLM checkpoint of a Hugging Face Nemotron, computed with torch alone.

Nothing of `nemotron_convert` is used: these are operations on whole tensors, with q, k and v in the
order of the heads, and not blocks of Megatron's groups.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import NemotronConfig


def rank_tensors(
    weights: dict[str, Tensor], config: NemotronConfig, tp: int, pp: int
) -> list[dict[str, Tensor]]:
    """Return the tensors of every rank; rank = stage · tp + TP rank."""
    ranks = []
    stages = torch.tensor_split(torch.arange(config.num_hidden_layers), pp)
    for stage, layers in enumerate(stages):
        for rank in range(tp):
            tensors: dict[str, Tensor] = {}
            if stage == 0:
                embedding = weights["model.embed_tokens.weight"]
                tensors["transformer.vocab_embedding.weight"] = _vocabulary_rows(
                    embedding, tp, rank
                )
            for local, layer in enumerate(layers.tolist()):
                for name, tensor in _layer(weights, config, layer, tp, rank).items():
                    tensors[f"transformer.layers.{local}.{name}"] = tensor
            if stage == pp - 1:
                tensors["transformer.ln_f.weight"] = _plus_one(weights["model.norm.weight"])
                tensors["transformer.ln_f.bias"] = weights["model.norm.bias"]
                tensors["lm_head.weight"] = _vocabulary_rows(weights["lm_head.weight"], tp, rank)
            ranks.append(tensors)
    return ranks


def _layer(
    weights: dict[str, Tensor], config: NemotronConfig, layer: int, tp: int, rank: int
) -> dict[str, Tensor]:
    prefix = f"model.layers.{layer}."
    repeats = max(1, tp // config.num_key_value_heads)

    def heads(name: str, repeat: int = 1) -> Tensor:
        rows = weights[f"{prefix}self_attn.{name}_proj.weight"]
        by_head = rows.unflatten(0, (-1, config.head_dim)).repeat_interleave(repeat, 0)
        return by_head.chunk(tp)[rank].flatten(0, 1)

    return {
        "input_layernorm.weight": _plus_one(weights[prefix + "input_layernorm.weight"]),
        "input_layernorm.bias": weights[prefix + "input_layernorm.bias"],
        "attention.qkv.weight": torch.cat([heads("q"), heads("k", repeats), heads("v", repeats)]),
        "attention.dense.weight": weights[prefix + "self_attn.o_proj.weight"].chunk(tp, 1)[rank],
        "post_layernorm.weight": _plus_one(weights[prefix + "post_attention_layernorm.weight"]),
        "post_layernorm.bias": weights[prefix + "post_attention_layernorm.bias"],
        "mlp.fc.weight": weights[prefix + "mlp.up_proj.weight"].chunk(tp)[rank],
        "mlp.proj.weight": weights[prefix + "mlp.down_proj.weight"].chunk(tp, 1)[rank],
    }


def _plus_one(gamma: Tensor) -> Tensor:
    return (gamma.float() + 1).to(gamma.dtype)


def _vocabulary_rows(table: Tensor, tp: int, rank: int) -> Tensor:
    padding = -len(table) % tp
    return torch.nn.functional.pad(table, (0, 0, 0, padding)).chunk(tp)[rank]
