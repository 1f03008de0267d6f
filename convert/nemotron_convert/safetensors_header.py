"""The header of a safetensors file, for the reader of folders and for the reader of our own files.

A file is the header's length in eight little-endian bytes, the header in JSON, and the tensors'
bytes without gaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

LENGTH_BYTES = 8
HEADER_LIMIT = 100_000_000
"""Largest size of the header in bytes, by the format's own rule."""
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64"), 8),
}
"""Bytes of a number of each dtype. What is smaller than a byte belongs to quantized models."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's dtype, spelled as in safetensors, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `spec.nbytes` bytes from byte `offset` on."""

    spec: TensorSpec
    offset: int


def read_tensors(read: Callable[[int, int], bytes], size: int) -> dict[str, StoredTensor]:
    """Return the tensors of a file of `size` bytes by name; `read` takes an offset and a length.

    Raises `ValueError`, which says what is wrong, if header and size disagree, a name comes twice,
    or the tensors do not fill the file without gaps.
    """
    length = int.from_bytes(read(0, min(LENGTH_BYTES, size)), "little")
    start = LENGTH_BYTES + length
    if size < LENGTH_BYTES or length > HEADER_LIMIT or start > size:
        raise ValueError(f"the header has {length} bytes, the file {size}")
    try:
        header = json.loads(read(LENGTH_BYTES, length), object_pairs_hook=_unique)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {name: _tensor(name, entry, start, size) for name, entry in entries.items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header is not one of safetensors: {error}") from error
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset != end and tensor.spec.nbytes:
            raise ValueError(f"{name} begins at byte {tensor.offset}, not at {end}")
        end = max(end, tensor.offset + tensor.spec.nbytes)
    if end != size:
        raise ValueError(f"the tensors end at byte {end}, the file at {size}")
    return tensors


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs of a JSON object. Raises `ValueError` if a key comes twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name comes twice in its header")
    return content


def _tensor(name: str, entry: dict[str, object], start: int, size: int) -> StoredTensor:
    """Return an entry of the header of a file that has `size` bytes, and data from `start` on."""
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"{name} has dtype {dtype}"[:200])
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has shape {shape} and offsets {offsets}"[:200])
    spec = TensorSpec(dtype, tuple(shape))
    begin, end = offsets
    if end - begin != spec.nbytes or start + end > size:
        raise ValueError(f"{name} has offsets {[begin, end]} in a file of {size} bytes")
    return StoredTensor(spec, start + begin)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
