"""Nemotron-4's decoder layer in torch, operation by operation.

Tokens of all sequences lie end to end in the first axis, T; only attention looks at where one ends.
Everything is F32 but the products, whose precision is the weights' affair.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nemotron_core.model_config import ModelConfig


class LayerWeights(Protocol):
    """One decoder layer as its operations see it."""

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        """LayerNorm `input_layernorm` or `post_layernorm` of hidden [T, H]."""

    def linear(self, name: str, values: Tensor) -> Tensor:
        """`attention.dense`, `mlp.fc` or `mlp.proj` of values [T, in]: [T, out], F32."""

    def qkv(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, heads, D], keys and values [T, KV heads, D], not yet rotated."""


@dataclass(frozen=True)
class Trace:
    """Every intermediate result of one layer, [T, …] in F32."""

    normed: Tensor
    query: Tensor
    """Not yet rotated, nor are the keys."""
    key: Tensor
    value: Tensor
    cached_key: Tensor
    """Rotated."""
    attended: Tensor
    middle: Tensor
    """Hidden state between attention and MLP."""
    post_normed: Tensor
    wide: Tensor
    """What `mlp.fc` makes."""
    hidden: Tensor
    """The layer's output."""

    @property
    def squared(self) -> Tensor:
        """What `mlp.proj` gets."""
        return squared_relu(self.wide)


class Rotary:
    """NeoX rotary embedding of the first `width` of each head, the rest stays as it is.

    Angles are position · base^(-2i / width), after Su et al., arXiv:2104.09864.
    """

    def __init__(self, head_size: int, share: float, base: float, lengths: Sequence[int]) -> None:
        self._half = int(head_size * share) // 2
        steps = torch.arange(self._half, dtype=torch.float32) / self._half
        positions = torch.cat([torch.arange(n, dtype=torch.float32) for n in lengths])
        angles = torch.outer(positions, 1.0 / base**steps)[:, None, :]
        self._cos, self._sin = angles.cos(), angles.sin()

    def to(self, device: torch.device) -> Rotary:
        """The tables moved to a device."""
        self._cos, self._sin = self._cos.to(device), self._sin.to(device)
        return self

    def turn(self, heads: Tensor) -> Tensor:
        """Heads [T, n, D], rotated."""
        half = self._half
        first, second, rest = heads.tensor_split((half, 2 * half), dim=-1)
        return torch.cat(
            (
                first * self._cos - second * self._sin,
                second * self._cos + first * self._sin,
                rest,
            ),
            dim=-1,
        )


def rotary_of(config: ModelConfig, lengths: Sequence[int]) -> Rotary:
    """For sequences of these lengths."""
    return Rotary(config.head_size, config.rotary_pct, config.rotary_base, lengths)


def attend(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float
) -> Tensor:
    """Causal attention within each sequence, softmax(scale · q·k) · v: [T, heads · D]."""
    groups = query.shape[1] // key.shape[1]
    ends = list(itertools.accumulate(lengths))
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        # [1, heads, tokens of this sequence, D]
        q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        done = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        parts.append(done[0].transpose(0, 1).flatten(1))
    return torch.cat(parts)


def run_layer(
    weights: LayerWeights, hidden: Tensor, rotary: Rotary, lengths: Sequence[int]
) -> Trace:
    """One decoder layer on hidden [T, H], F32."""
    normed = weights.norm("input_layernorm", hidden)
    query, key, value = weights.qkv(normed)
    cached_key = rotary.turn(key)
    scale = query.shape[-1] ** -0.5
    attended = attend(rotary.turn(query), cached_key, value, lengths, scale)
    middle = hidden + weights.linear("attention.dense", attended)
    post_normed = weights.norm("post_layernorm", middle)
    wide = weights.linear("mlp.fc", post_normed)
    out = middle + weights.linear("mlp.proj", squared_relu(wide))
    return Trace(normed, query, key, value, cached_key, attended, middle, post_normed, wide, out)


def squared_relu(values: Tensor) -> Tensor:
    """max(x, 0)²: So et al., arXiv:2109.08668."""
    return values.relu().square()


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis in F32; `weight` is gamma, 1 included."""
    return functional.layer_norm(hidden, hidden.shape[-1:], weight.float(), bias.float(), eps)


def split_groups(qkv: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Megatron's [T, groups of (queries, key, value)] as queries, keys and values by heads."""
    size, groups = config.head_size, config.num_kv_heads
    grouped = qkv.reshape(len(qkv), groups, -1, size)
    query, key, value = grouped.tensor_split((-2, -1), dim=2)
    return query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2)


def from_words(words: NDArray[np.uint16]) -> Tensor:
    """BF16 words as a tensor on the same memory."""
    return torch.from_numpy(words).view(torch.bfloat16)


def to_words(values: Tensor) -> NDArray[np.uint16]:
    """F32 values rounded to BF16 words."""
    words: NDArray[np.uint16] = values.to(torch.bfloat16).cpu().view(torch.uint16).numpy()
    return words
