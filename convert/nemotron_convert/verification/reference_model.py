"""The unsharded source, computed layer by layer in F32 with a small part of it in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemotron_convert.calibration.decoder import (
    LayerTrace,
    RotaryEmbedding,
    from_words,
    layer_norm,
    split_groups,
    trace_layer,
)
from nemotron_convert.calibration.layer_weights import LINEAR_SOURCES, read_norm, to_gamma
from nemotron_convert.source.adapter import Adapter
from nemotron_convert.source.arrays import StoredArray
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.fp8 import amax_bits, bf16_from_bits
from nemotron_convert.tensor_map import EMBEDDING, HEAD
from nemotron_convert.verification.adapter_effects import Effect, find_effect, prompt_vectors
from nemotron_convert.verification.sharded_model import Check, RankSlices
from nemotron_core.model_config import ModelConfig

BAND_BYTES = 16 << 20
"""Bytes of a matrix in BF16 that are multiplied at a time."""


@dataclass(frozen=True)
class MatrixResults:
    """Results of a layer's matrix products that the comparison with a checkpoint needs."""

    config: ModelConfig
    amaxes: dict[str, float] = field(default_factory=dict)
    """Largest magnitudes of the matrices, by TensorRT-LLM's names."""
    rank_products: dict[str, Tensor] = field(default_factory=dict)
    """[TP, T, out]: for each matrix that is split by columns, the product of each rank's columns;
    their sum over the ranks is the matrix product."""
    adapter_parts: dict[str, Tensor] = field(default_factory=dict)
    """[TP, T, out]: how much adapters change the products; [1, T, out] of the other matrices."""

    def adapter_effect(self, check: Check, slices: RankSlices, tp: int) -> Tensor | None:
        """Return how much adapters change the result of a check of a rank with these slices.

        Returns `None` if they do not.
        """
        operation = "attention.qkv" if check.operation in "QKV" else check.operation
        parts = self.adapter_parts.get(operation)
        if parts is None:
            return None
        if operation in ("attention.dense", "mlp.proj"):
            return parts[check.rank % tp]
        if operation == "mlp.fc":
            return parts[0][:, slices.ffn]
        query, key, value = split_groups(parts[0], self.config)
        return {
            "Q": query[:, slices.queries],
            "K": key[:, slices.groups],
            "V": value[:, slices.groups],
        }[check.operation]


class ReferenceModel:
    """The source's hidden states for a few sequences, from the embedding to the logits.

    Shapes use T tokens of all sequences, laid end to end, and the hidden size H. Everything is F32.
    """

    def __init__(
        self, source: Source, adapters: Sequence[Adapter], tp: int, lengths: Sequence[int]
    ) -> None:
        """Prepare to compute the source with these adapters, which are not merged into it."""
        self._source, self._adapters, self._tp = source, adapters, tp
        self._lengths = lengths
        self._rotary = RotaryEmbedding(source.config, lengths)
        vectors = [prompt_vectors(adapter) for adapter in adapters if adapter.prompt is not None]
        self.virtual_tokens = torch.cat([torch.zeros(0, source.config.hidden_size), *vectors])
        """Vectors [N, H] of the P-tuning among the adapters."""

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings [T, H] of token ids [T]; those above the vocabulary are virtual."""
        is_virtual = ids >= self._source.vocab_size
        distinct_ids, indexes = np.unique(ids[~is_virtual].numpy(), return_inverse=True)
        words = self._source.tensors[EMBEDDING].read_rows(distinct_ids)[indexes]
        hidden = torch.empty(len(ids), self._source.config.hidden_size)
        hidden[~is_virtual] = from_words(words).float()
        hidden[is_virtual] = self.virtual_tokens[ids[is_virtual] - self._source.vocab_size]
        return hidden

    def layer(self, layer: int, hidden: Tensor) -> tuple[LayerTrace, MatrixResults]:
        """Compute one layer on hidden [T, H]."""
        weights = StreamedLayer(self._source, self._adapters, layer, self._tp)
        return trace_layer(weights, hidden, self._rotary, self._lengths), weights.results

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return the input of the output layer, [T, H], for the last layer's hidden [T, H]."""
        weight, bias = (
            self._source.tensors[f"model.decoder.final_layernorm.{part}"].read_layer(0)[0]
            for part in ("weight", "bias")
        )
        eps = self._source.config.norm_eps
        return layer_norm(hidden, to_gamma(self._source, weight), from_words(bias), eps)

    def logits(self, normed: Tensor, rows: slice) -> Tensor:
        """Return the logits [T, rows] of a slice of the vocabulary for normed [T, H]."""
        logits = torch.zeros(len(normed), rows.stop - rows.start)
        for top, left, words in _bands(self._source.tensors[HEAD], 0):
            band = from_words(words).float()
            start, end = max(top, rows.start), min(top + len(band), rows.stop)
            if start < end:
                columns = normed[:, left : left + band.shape[1]]
                product = columns @ band[start - top : end - top].T
                logits[:, start - rows.start : end - rows.start] += product
        return logits


class StreamedLayer:
    """`LayerWeights` whose matrices are read from the source band by band at each use."""

    def __init__(self, source: Source, adapters: Sequence[Adapter], layer: int, tp: int) -> None:
        self._source, self._adapters, self._layer, self._tp = source, adapters, layer, tp
        self.results = MatrixResults(source.config)
        """Results of the products so far."""

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        """See `LayerWeights`."""
        weight, bias = read_norm(self._source, self._layer, name)
        return layer_norm(hidden, weight, bias, self._source.config.norm_eps)

    def linear(self, name: str, values: Tensor) -> Tensor:
        """See `LayerWeights`."""
        array = self._source.tensors[LINEAR_SOURCES[name]]
        is_split_by_columns = name in ("attention.dense", "mlp.proj")
        ranks = self._tp if is_split_by_columns else 1
        columns = values.shape[1] // ranks
        effect = find_effect(self._adapters, name, self._layer, array.shape)
        inputs = [values]
        if effect and effect.multiplies:
            inputs.append(values * effect.columns)
        products = torch.zeros(len(inputs), ranks, len(values), array.shape[1])
        bits = 0
        for top, left, words in _bands(array, self._layer):
            band = from_words(words).float()
            merged = effect.merged(band, top, left).view(torch.uint16).numpy() if effect else words
            bits = max(bits, amax_bits(merged))
            for rank in range(ranks):
                start = max(left, rank * columns)
                end = min(left + band.shape[1], (rank + 1) * columns)
                if start < end:
                    for part, product in zip(inputs, products, strict=True):
                        product[rank, :, top : top + len(band)] += (
                            part[:, start:end] @ band[:, start - left : end - left].T
                        )
        self.results.amaxes[name] = bf16_from_bits(bits)
        if effect:
            self.results.adapter_parts[name] = _adapter_parts(effect, values, products)
            products[0] += self.results.adapter_parts[name]
        products = products[0]
        if is_split_by_columns:
            self.results.rank_products[name] = products
        return products.sum(0)

    def qkv(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `LayerWeights`."""
        return split_groups(self.linear("attention.qkv", normed), self._source.config)


def _adapter_parts(effect: Effect, values: Tensor, products: Tensor) -> Tensor:
    """Return how much adapters change products [ranks, T, out] of values [T, in] by columns.

    `products` has those of the unchanged matrix, then, with an IA3, those of its scaled inputs.
    """
    ranks = products.shape[1]
    factors = zip(values.chunk(ranks, 1), effect.a.chunk(ranks, 1), strict=True)
    changes = torch.stack([part @ a.T @ effect.b.T for part, a in factors])
    return changes + products[-1] * effect.rows - products[0]


def _bands(array: StoredArray, layer: int) -> Iterator[tuple[int, int, NDArray[np.uint16]]]:
    """Yield (first row, first column, BF16 words) of the bands of one layer's matrix."""
    for chunk in array.layer_chunks(layer):
        for first, words in array.read_bands(chunk, BAND_BYTES):
            yield chunk.row + first, chunk.column, np.ascontiguousarray(words)
