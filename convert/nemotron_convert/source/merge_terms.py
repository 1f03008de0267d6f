"""What an adapter does to a matrix: a product of factors is added, or its sides are multiplied.

Everything is computed in F64, in which a product of two F32 numbers is exact: the last bits of a
result then do not depend on the blocks in which a matrix is merged.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.shards import HeadKind, take_heads
from nemotron_convert.source.adapter_map import Axis, Ia3Module, LoraModule
from nemotron_convert.source.arrays import StoredArray
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

CACHED_LAYERS = 2
"""Layers whose factors are kept: some threads are at the next layer while others end one."""

Matrix = NDArray[np.float64]
Value = TypeVar("Value")


class MergeTerm(Protocol):
    """One adapter's change of one matrix of every layer. All methods may run in any thread."""

    @property
    def layers(self) -> Collection[int]:
        """The layers that are changed."""

    def apply(self, block: Matrix, layer: int, row: int, column: int) -> None:
        """Change the block [rows, columns] that begins at (`row`, `column`) of a layer's matrix."""


class LayerCache(Generic[Value]):
    """Keeps what was read last for a few layers."""

    def __init__(self, read: Callable[[int], Value]) -> None:
        self._read = read
        self._values: OrderedDict[int, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, layer: int) -> Value:
        with self._lock:
            if layer not in self._values:
                self._values[layer] = self._read(layer)
                if len(self._values) > CACHED_LAYERS:
                    self._values.popitem(last=False)
            return self._values[layer]


@dataclass(frozen=True)
class LoraPart:
    """The factors of a LoRA's module in all layers that have them."""

    module: LoraModule
    inputs: Mapping[int, StoredArray]
    """A [rank, columns] of each layer."""
    outputs: Mapping[int, StoredArray]
    """B [rows, rank] of each layer."""

    def factors(self, layer: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return A and B of a layer. Raises `NemotronError` if they hold NaN or Inf."""
        return read_finite(self.inputs[layer], layer), read_finite(self.outputs[layer], layer)


class LoraTerm:
    """Adds scale · B · A. Parts of several kinds of heads become one product with wider factors."""

    def __init__(self, parts: Sequence[LoraPart], scale: float, config: ModelConfig) -> None:
        self._parts, self._scale, self._config = parts, scale, config
        self._factors = LayerCache(self._read)

    @property
    def layers(self) -> Collection[int]:
        return {layer for part in self._parts for layer in part.inputs}

    def apply(self, block: Matrix, layer: int, row: int, column: int) -> None:
        wide_a, wide_b = self._factors[layer]
        rows, columns = block.shape
        block += wide_b[row : row + rows] @ wide_a[:, column : column + columns]

    def _read(self, layer: int) -> tuple[Matrix, Matrix]:
        """Return A [ranks, columns] and scale · B [rows, ranks], with the ranks of all parts."""
        wide_a, wide_b = [], []
        for part in self._parts:
            if layer in part.inputs:
                a, b = part.factors(layer)
                wide_a.append(a.astype(np.float64))
                wide_b.append(self._scale * place_heads(b, part.module.heads, self._config))
        return np.concatenate(wide_a), np.concatenate(wide_b, axis=1)


@dataclass(frozen=True)
class Ia3Part:
    """The vectors of an IA3's module in all layers that have them."""

    module: Ia3Module
    vectors: Mapping[int, StoredArray]
    """The factors [size] of each layer."""


class Ia3Term:
    """Multiplies the rows of one kind of heads, or the columns."""

    def __init__(self, part: Ia3Part, config: ModelConfig) -> None:
        self._module, self._vectors, self._config = part.module, part.vectors, config
        self._factors = LayerCache(self._read)

    @property
    def layers(self) -> Collection[int]:
        return self._vectors.keys()

    def apply(self, block: Matrix, layer: int, row: int, column: int) -> None:
        rows, columns = block.shape
        if self._module.axis is Axis.ROWS:
            block *= self._factors[layer][row : row + rows, None]
        else:
            block *= self._factors[layer][column : column + columns]

    def _read(self, layer: int) -> Matrix:
        """Return the factor of each row or column; it is 1 for other kinds of heads."""
        factors: Matrix = read_finite(self._vectors[layer], layer).astype(np.float64)
        if self._module.heads is None:
            vector: Matrix = factors[0]
            return vector
        placed = place_heads(factors.T - 1, self._module.heads, self._config)
        factors_of_rows: Matrix = 1 + placed[:, 0]
        return factors_of_rows


def place_heads(
    rows: NDArray[np.float32] | Matrix, heads: HeadKind | None, config: ModelConfig
) -> Matrix:
    """Return rows [heads · head size, C] of one kind of heads in the order of the fused matrix.

    The rows of other kinds are zero. Without a kind, the rows stay as they are.
    """
    if heads is None:
        return rows.astype(np.float64)
    placed = np.zeros((config.qkv_rows, rows.shape[1]))
    sizes = config.num_heads, config.num_kv_heads, config.head_size, rows.shape[1]
    for block in take_heads(heads, *sizes):
        source = slice(block.rank_row, block.rank_row + block.rows)
        placed[block.row : block.row + block.rows] = rows[source]
    return placed


def read_finite(array: StoredArray, layer: int) -> NDArray[np.float32]:
    """Return an adapter's matrix [R, C]. Raises `NemotronError` if it holds NaN or Inf."""
    matrix = array.read_numbers()
    if not np.isfinite(matrix).all():
        raise NemotronError(
            f"tensor {array.name}, layer {layer} holds NaN or Inf",
            where=array.archive.path,
            remedy="copy the adapter again",
        )
    return matrix
