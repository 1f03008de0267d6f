"""A stored array into which adapters are merged while it is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.source.adapter import Adapter
from nemotron_convert.source.arrays import Chunk, StoredArray
from nemotron_convert.source.merge_terms import MergeTerm
from nemotron_convert.source.number_types import RangeLoss, round_to_bf16


@dataclass(frozen=True)
class MergedArray(StoredArray):
    """An array W with W' = bf16(f32(W) + scale · f32(B) · f32(A)), or multiplied sides.

    The adapters are applied in order and rounded once, after the last. Layers that none of them
    changes are read as they are.
    """

    terms: tuple[MergeTerm, ...] = ()

    def read_checked(
        self, chunk: Chunk, first: int, rows: int
    ) -> tuple[NDArray[np.uint16], RangeLoss]:
        terms = self._by_changed_layer.get(chunk.layer)
        if terms is None:
            return super().read_checked(chunk, first, rows)
        block = self.read_exact(chunk, first, rows).astype(np.float64)
        for term in terms:
            term.apply(block, chunk.layer, chunk.row + first, chunk.column)
        with np.errstate(over="ignore"):
            return round_to_bf16(block.astype(np.float32))

    @cached_property
    def _by_changed_layer(self) -> dict[int, list[MergeTerm]]:
        by_layer: defaultdict[int, list[MergeTerm]] = defaultdict(list)
        for term in self.terms:
            for layer in term.layers:
                by_layer[layer].append(term)
        return dict(by_layer)


def merge(
    tensors: Mapping[str, StoredArray], adapters: Sequence[Adapter]
) -> dict[str, StoredArray]:
    """Return the tensors of a model with its adapters merged into them, in order."""
    terms: defaultdict[str, list[MergeTerm]] = defaultdict(list)
    for adapter in adapters:
        for name, terms_of_tensor in adapter.terms.items():
            terms[name] += terms_of_tensor
    return {
        name: _merged(tensor, tuple(terms[name])) if name in terms else tensor
        for name, tensor in tensors.items()
    }


def _merged(array: StoredArray, terms: tuple[MergeTerm, ...]) -> MergedArray:
    values = {field.name: getattr(array, field.name) for field in fields(StoredArray)}
    return MergedArray(**values, terms=terms)
