"""The weights of one decoder layer of the source, held on a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemotron_convert.calibration.decoder import from_words, layer_norm, split_groups
from nemotron_convert.calibration.devices import has_bf16
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.copier import add_gamma, exact_gamma
from nemotron_convert.tensor_map import LAYERS, LINEARS, TENSOR_MAP
from nemotron_core.model_config import ModelConfig

LINEAR_SOURCES = {name: source for source, name in LINEARS.items()}
"""Source tensor of each linear layer, by TensorRT-LLM's name."""
NORM_SOURCES = {
    rule.target.rpartition("}.")[2].rpartition(".")[0]: rule.source.rpartition("_")[0]
    for rule in TENSOR_MAP
    if rule.source.startswith(LAYERS) and rule.is_gamma
}
"""Source tensors of `input_layernorm` and `post_layernorm`, without `_weight` or `_bias`."""
BLOCK_BYTES = 64 << 20
"""Bytes of a matrix that are widened to F32 at a time."""


@dataclass(frozen=True)
class ResidentLayer:
    """`LayerWeights` in BF16 on one device.

    Products are of BF16 numbers, summed in F32 and rounded to BF16, by the device itself or, on a
    CPU without BF16 arithmetic, in F32, because PyTorch's own way there is many times slower. The
    memory is allocated once, and each layer of the model overwrites the one before.
    """

    config: ModelConfig
    matrices: dict[str, Tensor]
    """Matrices [out, in] by TensorRT-LLM's names."""
    norms: dict[str, tuple[Tensor, Tensor]]
    """Gamma and bias, both [H], by `input_layernorm` and `post_layernorm`."""
    has_bf16: bool
    """Whether the device has BF16 arithmetic."""

    @classmethod
    def allocate(cls, source: Source, device: torch.device) -> ResidentLayer:
        """Return a layer of the source's shapes with undefined numbers."""

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.bfloat16, device=device)

        matrices = {
            name: empty(*source.tensors[tensor].shape[-2:])
            for name, tensor in LINEAR_SOURCES.items()
        }
        width = source.config.hidden_size
        norms = {name: (empty(width), empty(width)) for name in NORM_SOURCES}
        return cls(source.config, matrices, norms, has_bf16(device))

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        """See `LayerWeights`. The result is BF16."""
        normed = layer_norm(hidden, *self.norms[name], self.config.norm_eps)
        return normed.to(torch.bfloat16)

    def linear(self, name: str, values: Tensor) -> Tensor:
        """See `LayerWeights`. Values are rounded to BF16, and the result is BF16."""
        values, matrix = values.to(torch.bfloat16), self.matrices[name]
        if self.has_bf16:
            return values @ matrix.T
        result = values.new_empty(len(values), len(matrix))
        values = values.float()
        rows = max(1, BLOCK_BYTES // (4 * matrix.shape[1]))
        for first in range(0, len(matrix), rows):
            block = slice(first, first + rows)
            result[:, block] = values @ matrix[block].float().T
        return result

    def qkv(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `LayerWeights`. The heads are BF16, or F32 of the same values: see `has_bf16`."""
        qkv = self.linear("attention.qkv", normed)
        return split_groups(qkv if self.has_bf16 else qkv.float(), self.config)


def layer_nbytes(source: Source) -> int:
    """Return the bytes of the matrices of one layer of the source."""
    return sum(source.tensors[name].layer_bytes for name in LINEARS)


def read_norm(source: Source, layer: int, name: str) -> tuple[Tensor, Tensor]:
    """Return gamma and bias of a layer's norm, both [H], in the CPU's memory.

    `gamma` includes the 1 that LayerNorm1P adds, as it does in the converter's output. It is F32
    for a reward model, and everything else BF16.
    """
    weight, bias = (
        source.tensors[f"{NORM_SOURCES[name]}_{part}"].read_layer(layer)[0]
        for part in ("weight", "bias")
    )
    return to_gamma(source, weight), from_words(bias)


def to_gamma(source: Source, words: NDArray[np.uint16]) -> Tensor:
    """Return a stored norm weight as the converter writes it: see `read_norm`."""
    offset = int(source.config.gamma_is_centered)
    if source.reward_head is not None:
        return torch.from_numpy(exact_gamma(words, offset))
    return from_words(add_gamma(words, offset))
