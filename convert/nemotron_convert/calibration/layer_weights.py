"""The weights of one decoder layer of the source, held on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_convert.calibration.amax import check_finite
from nemotron_convert.calibration.decoder import from_words, layer_norm, split_groups
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.copier import add_gamma
from nemotron_convert.target.fp8 import amax_bits, bf16_from_bits
from nemotron_convert.tensor_map import LAYERS, LINEARS, TENSOR_MAP

LINEAR_SOURCES = {name: source for source, name in LINEARS.items()}
"""Source tensor of each linear layer, by TensorRT-LLM's name."""
NORM_SOURCES = {
    rule.target.rpartition("}.")[2].rpartition(".")[0]: rule.source.rpartition("_")[0]
    for rule in TENSOR_MAP
    if rule.source.startswith(LAYERS) and rule.is_gamma
}
"""Source tensors of `input_layernorm` and `post_layernorm`, without `_weight` or `_bias`."""


class ResidentLayer:
    """`LayerWeights` whose matrices are held in BF16 on a device and multiplied there in BF16.

    Raises `NemotronError` if a matrix holds NaN or Inf.
    """

    def __init__(self, source: Source, layer: int, device: torch.device) -> None:
        self._config = source.config
        self._norms = {name: read_norm(source, layer, name, device) for name in NORM_SOURCES}
        self._matrices: dict[str, Tensor] = {}
        self.amaxes: dict[str, float] = {}
        """Largest magnitudes of the matrices, by TensorRT-LLM's names."""
        for name, tensor in LINEAR_SOURCES.items():
            words = source.tensors[tensor].read_layer(layer)
            bits = amax_bits(words)
            check_finite(source.tensors[tensor], layer, bits)
            self.amaxes[name] = bf16_from_bits(bits)
            self._matrices[name] = from_words(words).to(device)

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        """See `LayerWeights`."""
        return layer_norm(hidden, *self._norms[name], self._config.norm_eps)

    def linear(self, name: str, values: Tensor) -> Tensor:
        """See `LayerWeights`."""
        return (values.to(torch.bfloat16) @ self._matrices[name].T).float()

    def qkv(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `LayerWeights`."""
        return split_groups(self.linear("attention.qkv", normed), self._config)


def read_norm(source: Source, layer: int, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return gamma and bias of a layer's norm, both [H] in BF16.

    `gamma` includes the 1 that LayerNorm1P adds, as it does in the converter's output.
    """
    weight, bias = (
        source.tensors[f"{NORM_SOURCES[name]}_{part}"].read_layer(layer)[0]
        for part in ("weight", "bias")
    )
    if source.config.gamma_is_centered:
        weight = add_gamma(weight, 1)
    return from_words(weight).to(device), from_words(bias).to(device)
