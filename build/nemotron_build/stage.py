"""The bytes and operations of one pipeline stage of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nemotron_build.weights import Weights, packed_bytes
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Layout, rank_name
from nemotron_core.model_config import ModelConfig

EMBEDDING = "transformer.vocab_embedding.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Stage:
    """Memory and work of one GPU of a pipeline stage. All GPUs of a stage have the same."""

    weights: int
    """Bytes of its weights."""
    read: int
    """Bytes of the weights that a step reads."""
    linear: dict[str, int]
    """Number of weights in the decoder layers' linear layers, by the type of the product."""
    head: int
    """Number of weights of the output layer, which multiplies only the last token of a prompt."""
    layers: int
    """Number of decoder layers."""
    kv_token: int
    """Bytes of one token's keys and values."""
    attention: int
    """Operations (a multiply-add counts as two) for one token that attends to one other token."""


def make_stage(
    layout: Layout,
    stage: int,
    parallel: Parallel,
    shape: ModelConfig,
    kv_bytes: int,
    packed: Weights = "bf16",
) -> Stage:
    """Return stage number `stage`. `kv_bytes` is the size of one element of a key or a value.

    BF16 weights are `packed` in memory.
    """
    tensors = layout.files[rank_name(stage * parallel.tp)]
    sizes = {
        name: packed_bytes(name, spec.shape, packed) if spec.dtype == "BF16" else spec.nbytes
        for name, spec in tensors.items()
    }
    weights = sum(sizes.values())
    matrices = {
        name: spec
        for name, spec in tensors.items()
        if len(spec.shape) == 2 and name not in (EMBEDDING, HEAD)
    }
    linear: dict[str, int] = {}
    for spec in matrices.values():
        dtype = "fp8" if spec.dtype == "F8_E4M3" else "bf16"
        linear[dtype] = linear.get(dtype, 0) + math.prod(spec.shape)
    layers = sum(name.endswith("attention.dense.weight") for name in tensors)
    kv_heads = max(1, shape.num_kv_heads // parallel.tp)
    return Stage(
        weights=weights,
        read=weights - sizes.get(EMBEDDING, 0),
        linear=linear,
        head=math.prod(tensors[HEAD].shape) if HEAD in tensors else 0,
        layers=layers,
        kv_token=2 * layers * kv_heads * shape.head_size * kv_bytes,
        attention=2 * 2 * layers * (shape.num_heads // parallel.tp) * shape.head_size,
    )
