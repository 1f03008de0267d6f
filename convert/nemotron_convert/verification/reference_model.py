"""The unsharded source, run layer by layer in F32 with little of it in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemotron_convert.calibration.calibration_pass import SOURCES, read_norm
from nemotron_convert.calibration.decoder import (
    Trace,
    from_words,
    layer_norm,
    rotary_of,
    run_layer,
    split_groups,
)
from nemotron_convert.source.arrays import StoredArray
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.copier import add_gamma
from nemotron_convert.target.fp8 import amax_bits, bf16_from_bits
from nemotron_convert.tensor_map import EMBEDDING, HEAD

CPU = torch.device("cpu")
BAND_BYTES = 16 << 20
"""Of a matrix, multiplied at a time."""


class ReferenceModel:
    """Hidden states of a few sequences, from the embedding to the logits."""

    def __init__(self, source: Source, tp: int, lengths: Sequence[int]) -> None:
        self._source, self._tp, self._lengths = source, tp, lengths
        self._rotary = rotary_of(source.config, lengths)

    def embed(self, ids: Tensor) -> Tensor:
        """[T, H] of token ids [T]."""
        wanted, places = np.unique(ids.numpy(), return_inverse=True)
        return from_words(self._source.tensors[EMBEDDING].read_rows(wanted)[places]).float()

    def layer(self, layer: int, hidden: Tensor) -> tuple[Trace, StreamedLayer]:
        """One layer on hidden [T, H]."""
        weights = StreamedLayer(self._source, layer, self._tp)
        return run_layer(weights, hidden, self._rotary, self._lengths), weights

    def final_norm(self, hidden: Tensor) -> Tensor:
        """What the vocabulary is multiplied with, [T, H]."""
        weight, bias = (
            self._source.tensors[f"model.decoder.final_layernorm.{kind}"].read_layer(0)[0]
            for kind in ("weight", "bias")
        )
        if self._source.config.gamma_is_centered:
            weight = add_gamma(weight, 1)
        eps = self._source.config.norm_eps
        return layer_norm(hidden, from_words(weight), from_words(bias), eps)

    def logits(self, normed: Tensor, rows: slice) -> Tensor:
        """[T, rows] of some of the vocabulary."""
        out = torch.zeros(len(normed), rows.stop - rows.start)
        for top, left, words in _bands(self._source.tensors[HEAD], 0):
            band = from_words(words).float()
            start, end = max(top, rows.start), min(top + len(band), rows.stop)
            if start < end:
                part = normed[:, left : left + band.shape[1]] @ band[start - top : end - top].T
                out[:, start - rows.start : end - rows.start] += part
        return out


class StreamedLayer:
    """A layer whose matrices are read band by band, each time they are wanted."""

    def __init__(self, source: Source, layer: int, tp: int) -> None:
        self._source, self._layer, self._tp = source, layer, tp
        self.amaxes: dict[str, float] = {}
        """Largest magnitudes of the matrices used so far."""
        self.parts: dict[str, Tensor] = {}
        """[TP, T, out]: what each rank's columns contribute to a matrix that is split by them."""

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        """See `LayerWeights`."""
        weight, bias = read_norm(self._source, self._layer, name, CPU)
        return layer_norm(hidden, weight, bias, self._source.config.norm_eps)

    def linear(self, name: str, values: Tensor) -> Tensor:
        """See `LayerWeights`."""
        array = self._source.tensors[SOURCES[name]]
        by_columns = name in ("attention.dense", "mlp.proj")
        ranks = self._tp if by_columns else 1
        share = values.shape[1] // ranks
        parts = torch.zeros(ranks, len(values), array.shape[1])
        bits = 0
        for top, left, words in _bands(array, self._layer):
            bits = max(bits, amax_bits(words))
            band = from_words(words).float()
            for rank in range(ranks):
                start = max(left, rank * share)
                end = min(left + band.shape[1], (rank + 1) * share)
                if start < end:
                    part = values[:, start:end] @ band[:, start - left : end - left].T
                    parts[rank, :, top : top + len(band)] += part
        self.amaxes[name] = bf16_from_bits(bits)
        if by_columns:
            self.parts[name] = parts
        return parts.sum(0)

    def qkv(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `LayerWeights`."""
        return split_groups(self.linear("attention.qkv", normed), self._source.config)


def _bands(array: StoredArray, layer: int) -> Iterator[tuple[int, int, NDArray[np.uint16]]]:
    """(row, column, BF16 words) of the parts of a matrix."""
    for chunk in array.layer_chunks(layer):
        for first, words in array.read_bands(chunk, BAND_BYTES):
            yield chunk.row + first, chunk.column, np.ascontiguousarray(words)
