"""A rank's safetensors file, laid out before it is filled.

The format is an 8-byte little-endian length, a JSON header and the tensors' bytes without holes.
Writing it here, and not with the safetensors library, lets threads fill disjoint parts of a file
that is larger than memory; the library reads what comes out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.arrays import BF16_BYTES
from nemotron_convert.errors import NemotronError

DTYPE_BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}
ALIGNMENT = 8
HEADER_LIMIT = 100_000_000
"""The format's own limit on the header, in bytes."""


@dataclass(frozen=True)
class TensorSpec:
    """dtype as safetensors spells it, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class RankFile:
    """Positions of the tensors of one file; `create` makes it, `write` fills it from any thread."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorSpec]) -> None:
        self.path = path
        self.tensors = dict(tensors)
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        offsets = {}
        for name, tensor in tensors.items():
            offsets[name] = end
            entries[name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [end, end + tensor.nbytes],
            }
            end += tensor.nbytes
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % ALIGNMENT)
        self._header = len(header).to_bytes(8, "little") + header
        self._offsets = {name: len(self._header) + offset for name, offset in offsets.items()}
        self.size = len(self._header) + end
        self._descriptor = -1

    def create(self) -> None:
        """Write the header and reserve the room, so that a full disk is noticed at once."""
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        os.pwrite(self._descriptor, self._header, 0)
        os.posix_fallocate(self._descriptor, 0, self.size)

    def write(self, name: str, row: int, column: int, words: NDArray[np.uint16]) -> None:
        """Put BF16 words [rows, columns] into the tensor (a vector is one row)."""
        width = self.tensors[name].shape[-1]
        position = self._offsets[name] + (row * width + column) * BF16_BYTES
        if words.shape[1] == width:
            self._write_at(position, words.reshape(1, -1))
        else:
            self._write_at(position, words, pitch=width * BF16_BYTES)

    def _write_at(self, position: int, words: NDArray[np.uint16], pitch: int = 0) -> None:
        for i, words_of_row in enumerate(np.ascontiguousarray(words)):
            row = words_of_row.data.cast("B")
            done = 0
            while done < len(row):
                done += os.pwrite(self._descriptor, row[done:], position + i * pitch + done)

    def close(self) -> None:
        """Close the file, if `create` has opened it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file: `spec.nbytes` bytes from `offset` on."""

    spec: TensorSpec
    offset: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file; NemotronError if header and size disagree."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size - 8, HEADER_LIMIT):
                raise ValueError(f"the header has {length} bytes, the file {size}")
            header = json.loads(file.read(length))
        return _parse_header(header, 8 + length, size)
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NemotronError(
            f"not a whole safetensors file: {error}", where=path, remedy="convert again"
        ) from error


def _parse_header(header: dict[str, Any], start: int, size: int) -> dict[str, StoredTensor]:
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        spec = TensorSpec(entry["dtype"], tuple(entry["shape"]))
        if spec.dtype not in DTYPE_BYTES:
            raise ValueError(f"{name} has dtype {spec.dtype}")
        begin, end = entry["data_offsets"]
        if end - begin != spec.nbytes or begin < 0 or start + end > size:
            raise ValueError(f"{name} has offsets {[begin, end]} in a file of {size} bytes")
        tensors[name] = StoredTensor(spec, start + begin)
    return tensors
