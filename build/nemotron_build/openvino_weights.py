"""The weights of the CPU engine as constants of its graph.

The plug-in finds the pattern `convert · scale` before a product, keeps the small numbers in memory
and widens them while it computes.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nemotron_build.openvino_file import DECOMPRESSED
from nemotron_build.weights import Quantized, Weights, quantize_weight
from nemotron_core.openvino import openvino, opset13

Node = Any


def weight_node(name: str, matrix: NDArray[Any], weights: Weights, *, marked: bool) -> Node:
    """Return the node of a weight, F32 [R, C], for a product.

    A BF16 weight is `marked` as compressed if the plug-in computes in BF16, so that it keeps only
    one packed copy of it.
    """
    quantized = quantize_weight(name, matrix, weights)
    if quantized is not None:
        return _wide(quantized)
    wide = opset13.convert(bf16_constant(matrix), "f32")
    if marked:
        wide.set_friendly_name(f"{name.removesuffix('.weight')}.{DECOMPRESSED}")
    return wide


def table_node(name: str, matrix: NDArray[Any], weights: Weights, ids: Node) -> Node:
    """Return the rows of a weight for `ids` [B, T]: F32 [B, T, C]. Only these rows are widened."""
    zero = opset13.constant(np.int64(0))
    quantized = quantize_weight(name, matrix, weights)
    if quantized is None:
        return opset13.convert(opset13.gather(bf16_constant(matrix), ids, zero), "f32")
    numbers = quantized.numbers.reshape(len(matrix), -1)
    rows = opset13.convert(opset13.gather(opset13.constant(numbers), ids, zero), "f32")
    scales = opset13.gather(opset13.constant(quantized.scales[:, 0]), ids, zero)
    return opset13.multiply(rows, scales)


def bf16_constant(array: NDArray[Any]) -> Node:
    """Return a BF16 array as a constant."""
    if array.dtype != ml_dtypes.bfloat16:
        raise ValueError(f"expected BF16, got {array.dtype}")
    tensor = openvino.Tensor(array.view(np.uint16), list(array.shape), openvino.Type.bf16)
    return openvino.op.Constant(tensor, shared_memory=False)


def _wide(quantized: Quantized) -> Node:
    numbers, scales = quantized.numbers, quantized.scales
    rows, groups, group = numbers.shape
    if groups == 1:
        small = opset13.constant(numbers[:, 0])
        return opset13.multiply(opset13.convert(small, "f32"), opset13.constant(scales[:, 0]))
    small = _int4_constant(numbers)
    product = opset13.multiply(opset13.convert(small, "f32"), opset13.constant(scales))
    shape = opset13.constant(np.array([rows, groups * group], np.int64))
    return opset13.reshape(product, shape, special_zero=False)


def _int4_constant(numbers: NDArray[np.int8]) -> Node:
    """Return numbers from -8 to 7 as a constant of INT4; of two, the first is the lower half."""
    nibbles = numbers.reshape(-1, 2).view(np.uint8) & 0xF
    packed = np.ascontiguousarray(nibbles[:, 0] | nibbles[:, 1] << 4)
    tensor = openvino.Tensor(packed, list(numbers.shape), openvino.Type.i4)
    return openvino.op.Constant(tensor, shared_memory=False)
