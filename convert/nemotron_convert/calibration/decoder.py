"""Nemotron-4's decoder layer in torch, operation by operation.

The tokens of all sequences lie end to end on the first axis, T; only attention separates the
sequences. Shapes use T tokens, H hidden size and D head size. `LayerWeights` decides the precision:
each operation returns what it is given, and hidden states, norms and angles are computed in F32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nemotron_core.model_config import ModelConfig


class LayerWeights(Protocol):
    """The operations of one decoder layer that use its weights."""

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        """Apply LayerNorm `input_layernorm` or `post_layernorm` to hidden [T, H] in F32."""

    def linear(self, name: str, values: Tensor) -> Tensor:
        """Multiply values [T, in] by `attention.dense`, `mlp.fc` or `mlp.proj`: [T, out]."""

    def qkv(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [T, heads, D], keys and values [T, KV heads, D], before the rotation."""


@dataclass(frozen=True)
class LayerTrace:
    """All intermediate results of one layer, [T, …], in the order of computation."""

    normed: Tensor
    """Input of `attention.qkv`."""
    query: Tensor
    """Queries before the rotary embedding."""
    key: Tensor
    """Keys before the rotary embedding."""
    value: Tensor
    cached_key: Tensor
    """Keys after the rotary embedding, as the KV cache holds them."""
    attended: Tensor
    """Input of `attention.dense`."""
    middle: Tensor
    """Hidden states between attention and MLP."""
    post_normed: Tensor
    """Input of `mlp.fc`."""
    wide: Tensor
    """Output of `mlp.fc`."""
    squared: Tensor
    """Input of `mlp.proj`."""
    hidden: Tensor
    """Hidden states after the layer."""


Observer = Callable[[str, Tensor], None]
"""Gets each intermediate result of a layer, by its name in `LayerTrace`, and must not change it."""


class RotaryEmbedding:
    """Rotary position embedding (RoPE) for sequences of the given lengths.

    Su et al., arXiv:2104.09864, in GPT-NeoX's order: of each head's first `rotary_pct` · D = W
    numbers, numbers i and i + W/2 are rotated together by position · rotary_base^(-2i / W). The
    rest of the head does not change.
    """

    def __init__(self, config: ModelConfig, lengths: Sequence[int]) -> None:
        self._half = int(config.head_size * config.rotary_pct) // 2
        exponents = torch.arange(self._half, dtype=torch.float32) / self._half
        positions = torch.cat([torch.arange(n, dtype=torch.float32) for n in lengths])
        angles = torch.outer(positions, 1.0 / config.rotary_base**exponents)[:, None, :]
        self._cos, self._sin = angles.cos(), angles.sin()

    def to(self, device: torch.device) -> RotaryEmbedding:
        """Move the tables of sines and cosines to `device` and return this object."""
        self._cos, self._sin = self._cos.to(device), self._sin.to(device)
        return self

    def rotate(self, heads: Tensor) -> Tensor:
        """Return queries or keys [T, n, D] rotated by their positions, in their own type."""
        half = self._half
        first, second, rest = heads.tensor_split((half, 2 * half), dim=-1)
        rotated = (
            first * self._cos - second * self._sin,
            second * self._cos + first * self._sin,
        )
        return torch.cat((*(part.to(heads.dtype) for part in rotated), rest), dim=-1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float
) -> Tensor:
    """Return causal attention within each sequence, softmax(scale · q·kᵀ) · v: [T, heads · D].

    Query is [T, heads, D], key and value are [T, KV heads, D]. Consecutive query heads use the same
    KV head (grouped-query attention, Ainslie et al., arXiv:2305.13245).
    """
    group_size = query.shape[1] // key.shape[1]
    parts = []
    first = 0
    for length, group in groupby(lengths):  # neighbours of one length are computed together
        count = len(list(group))
        end = first + count * length
        q, k, v = (  # [sequences, heads, length, D]
            heads[first:end].view(count, length, *heads.shape[1:]).transpose(1, 2)
            for heads in (query, key, value)
        )
        k, v = (heads.repeat_interleave(group_size, dim=1) for heads in (k, v))
        part = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        parts.append(part.transpose(1, 2).flatten(2).flatten(0, 1))
        first = end
    return torch.cat(parts)


def run_layer(
    weights: LayerWeights,
    hidden: Tensor,
    rotary: RotaryEmbedding,
    lengths: Sequence[int],
    observe: Observer,
) -> Tensor:
    """Compute one decoder layer on hidden [T, H] in F32 and return the new hidden states.

    Each intermediate result is freed after its last use, unless `observe` keeps it.
    """
    middle = hidden + _attention(weights, hidden, rotary, lengths, observe)
    observe("middle", middle)
    out = middle + _mlp(weights, middle, observe)
    observe("hidden", out)
    return out


def trace_layer(
    weights: LayerWeights, hidden: Tensor, rotary: RotaryEmbedding, lengths: Sequence[int]
) -> LayerTrace:
    """Compute one decoder layer as `run_layer` does and return all intermediate results."""
    results: dict[str, Tensor] = {}
    run_layer(weights, hidden, rotary, lengths, results.__setitem__)
    return LayerTrace(**results)


def _attention(
    weights: LayerWeights,
    hidden: Tensor,
    rotary: RotaryEmbedding,
    lengths: Sequence[int],
    observe: Observer,
) -> Tensor:
    normed = weights.norm("input_layernorm", hidden)
    observe("normed", normed)
    query, key, value = weights.qkv(normed)
    for name, heads in (("query", query), ("key", key), ("value", value)):
        observe(name, heads)
    cached_key = rotary.rotate(key)
    observe("cached_key", cached_key)
    scale = query.shape[-1] ** -0.5
    attended = attend(rotary.rotate(query), cached_key, value, lengths, scale)
    observe("attended", attended)
    return weights.linear("attention.dense", attended)


def _mlp(weights: LayerWeights, middle: Tensor, observe: Observer) -> Tensor:
    normed = weights.norm("post_layernorm", middle)
    observe("post_normed", normed)
    wide = weights.linear("mlp.fc", normed)
    observe("wide", wide)
    squared = squared_relu(wide)
    del wide  # the largest result of a layer: only one of its kind is held at a time
    observe("squared", squared)
    return weights.linear("mlp.proj", squared)


def squared_relu(values: Tensor) -> Tensor:
    """Return max(x, 0)² of each number: So et al., arXiv:2109.08668.

    In BF16 the result is the F32 square rounded once, because a square of BF16 is exact in F32.
    """
    return values.relu().square_()


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return (x − mean) / √(variance + eps) · weight + bias over the last axis of [T, H], in F32.

    Ba et al., arXiv:1607.06450. `weight` [H] is gamma itself: where the source stores gamma − 1, as
    Megatron's LayerNorm1P does, the 1 has been added.
    """
    return functional.layer_norm(hidden, hidden.shape[-1:], weight.float(), bias.float(), eps)


def split_groups(qkv: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Split Megatron's output of `attention.qkv` into queries, keys and values by head.

    Megatron's rows are KV groups of (query heads, key head, value head): [T, groups · (n + 2) · D].
    """
    size, groups = config.head_size, config.num_kv_heads
    grouped = qkv.reshape(len(qkv), groups, -1, size)
    query, key, value = grouped.tensor_split((-2, -1), dim=2)
    return query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2)


def from_words(words: NDArray[np.uint16]) -> Tensor:
    """Return BF16 words as a BF16 tensor that shares their memory."""
    return torch.from_numpy(words).view(torch.bfloat16)
