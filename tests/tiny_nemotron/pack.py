"""Packs a trained NemotronForCausalLM as NVIDIA packs the real model: a tar with zarr arrays.

The chunk grid is the one that saving from eight tensor-parallel ranks leaves behind.
"""

from __future__ import annotations

import io
import json
import tarfile
from hashlib import md5
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import NemotronConfig

TP = 8
LAYERS = "model.decoder.layers."
# The pitfalls of the real file are kept: an unresolved ${multiply:…}, a null kv_channels, no
# rotary_base, a scaling switch that Megatron ignores, the tokenizer under two keys.
MODEL_CONFIG = """\
mcore_gpt: true
tensor_model_parallel_size: 8
pipeline_model_parallel_size: 1
encoder_seq_length: {positions}
max_position_embeddings: {positions}
num_layers: {layers}
hidden_size: {hidden}
ffn_hidden_size: ${{multiply:4, ${{.hidden_size}}}}
num_attention_heads: {heads}
num_query_groups: {kv_heads}
kv_channels: null
apply_query_key_layer_scaling: true
normalization: layernorm1p
layernorm_epsilon: 1.0e-05
make_vocab_size_divisible_by: 128
bias: false
activation: squared-relu
position_embedding_type: rope
rotary_percentage: 0.5
attention_type: multihead
share_embeddings_and_output_weights: false
tokenizer:
  library: sentencepiece
  type: null
  model: nemo:{tokenizer}
  tokenizer_model: nemo:{tokenizer}
  sentencepiece_legacy: false
precision: bf16
"""


def pack(
    weights: dict[str, Tensor], config: NemotronConfig, tokenizer: bytes, output: Path
) -> None:
    """Write the `.nemo`, with the same bytes for the same model on every run."""
    if config.intermediate_size != 4 * config.hidden_size:
        raise ValueError("model_config.yaml says that the MLP is four times as wide")
    name = f"{md5(tokenizer, usedforsecurity=False).hexdigest()}_tiny_nemotron.model"
    members = {
        "model_config.yaml": MODEL_CONFIG.format(
            positions=config.max_position_embeddings,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            tokenizer=name,
        ).encode(),
        name: tokenizer,
        "model_weights/metadata.json": json.dumps(
            {"sharded_backend": "zarr", "sharded_backend_version": 1}
        ).encode(),
    }
    for tensor, (array, chunks) in _megatron_arrays(weights, config).items():
        members |= _zarr(f"model_weights/{tensor}/", array, chunks)
    with tarfile.open(output, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in sorted(members.items()):
            info = tarfile.TarInfo(f"./{member}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _megatron_arrays(
    weights: dict[str, Tensor], config: NemotronConfig
) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Return Megatron's twelve tensors by name, each with its chunk shape."""
    vocab, hidden = weights["lm_head.weight"].shape

    def stack(name: str) -> Tensor:
        layers = range(config.num_hidden_layers)
        return torch.stack([weights[f"model.layers.{i}.{name}"] for i in layers])

    def by_group(name: str) -> Tensor:
        layers, groups = config.num_hidden_layers, config.num_key_value_heads
        return stack(f"self_attn.{name}_proj.weight").reshape(layers, groups, -1, hidden)

    qkv = torch.cat([by_group("q"), by_group("k"), by_group("v")], dim=2).flatten(1, 2)
    proj, fc1, fc2 = (
        stack(f"{name}.weight") for name in ("self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    )
    norm, rows = (1, hidden), (vocab // TP, hidden)
    arrays = {
        "model.embedding.word_embeddings.weight": (weights["model.embed_tokens.weight"], rows),
        "model.output_layer.weight": (weights["lm_head.weight"], rows),
        "model.decoder.final_layernorm.weight": (weights["model.norm.weight"], (hidden,)),
        "model.decoder.final_layernorm.bias": (weights["model.norm.bias"], (hidden,)),
        LAYERS + "self_attention.linear_qkv.weight": (qkv, (1, qkv.shape[1] // TP, hidden)),
        LAYERS + "self_attention.linear_proj.weight": (proj, (1, hidden, proj.shape[2] // TP)),
        LAYERS + "mlp.linear_fc1.weight": (fc1, (1, fc1.shape[1] // TP, hidden)),
        LAYERS + "mlp.linear_fc2.weight": (fc2, (1, hidden, fc2.shape[2] // TP)),
    }
    for target, source in (
        ("self_attention.linear_qkv", "input_layernorm"),
        ("mlp.linear_fc1", "post_attention_layernorm"),
    ):
        for part in ("weight", "bias"):
            arrays[f"{LAYERS}{target}.layer_norm_{part}"] = (stack(f"{source}.{part}"), norm)
    return arrays


def _zarr(folder: str, tensor: Tensor, chunks: tuple[int, ...]) -> dict[str, bytes]:
    """Return the members of one array. Every axis must be a whole number of chunks long."""
    if any(n % c for n, c in zip(tensor.shape, chunks, strict=True)):
        raise ValueError(f"{folder}: {tuple(tensor.shape)} is no whole number of {chunks}")
    words = tensor.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
    meta = {
        "chunks": chunks,
        "compressor": None,
        "dtype": "bfloat16",
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": words.shape,
        "zarr_format": 2,
    }
    members = {folder + ".zarray": json.dumps(meta, indent=4).encode()}
    for index in np.ndindex(*(n // c for n, c in zip(words.shape, chunks, strict=True))):
        place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))
        members[folder + ".".join(map(str, index))] = words[place].tobytes()
    return members
