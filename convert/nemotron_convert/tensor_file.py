"""A safetensors file, laid out before it is filled.

The format is an 8-byte little-endian length, a JSON header and the tensors' bytes without holes.
Writing it here, and not with the safetensors library, lets threads fill disjoint parts of a file
that is larger than memory; the library reads what comes out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.errors import NemotronError
from nemotron_convert.manifest import FileEntry

DTYPE_BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}
ALIGNMENT = 8
HASH_BYTES = 1 << 20
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


class TensorFile:
    """A file's tensors in place: `open` makes it, `write` fills it, both from any thread.

    SHA-256 follows the writing: each tensor that is whole, and behind no gap, is hashed while its
    bytes are still in memory, by whichever thread calls `hash_some`.
    """

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
        self._names = list(tensors)
        self._finished: set[str] = set()
        self._digest = hashlib.sha256()
        self._hashed_bytes = 0
        self._hashed_tensors = 0
        self._hashing = threading.Lock()

    def open(self) -> None:
        """Write the header and reserve the room, so that a full disk is noticed at once.

        What the file already holds stays: a resumed conversion counts on it.
        """
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        os.pwrite(self._descriptor, self._header, 0)
        os.posix_fallocate(self._descriptor, 0, self.size)
        os.ftruncate(self._descriptor, self.size)

    def write(self, name: str, row: int, column: int, values: NDArray[np.generic]) -> None:
        """Put values [rows, columns] of the tensor's width into it (a vector is one row)."""
        width, size = self.tensors[name].shape[-1], values.itemsize
        position = self._offsets[name] + (row * width + column) * size
        values = np.ascontiguousarray(values)
        if values.shape[1] == width:
            self._write_at(position, values.reshape(-1).view(np.uint8).data)
        else:
            for i, values_of_row in enumerate(values):
                self._write_at(position + i * width * size, values_of_row.view(np.uint8).data)

    def finish(self, name: str) -> None:
        """State that the tensor is whole."""
        self._finished.add(name)

    def sync(self) -> None:
        """Return when the disk holds everything written so far."""
        os.fdatasync(self._descriptor)

    @property
    def can_hash(self) -> bool:
        """There is a whole tensor to be hashed, and nobody is at it."""
        return self._next_end > self._hashed_bytes and not self._hashing.locked()

    def hash_some(self, stopped: Callable[[], bool]) -> None:
        """Hash what is whole, unless another thread is at it."""
        if not self._hashing.acquire(blocking=False):
            return
        try:
            buffer = memoryview(bytearray(HASH_BYTES))
            while (end := self._next_end) > self._hashed_bytes:
                while self._hashed_bytes < end and not stopped():
                    part = buffer[: min(HASH_BYTES, end - self._hashed_bytes)]
                    count = os.preadv(self._descriptor, [part], self._hashed_bytes)
                    self._digest.update(part[:count])
                    self._hashed_bytes += count
                if stopped():
                    return
                self._hashed_tensors += 1
        finally:
            self._hashing.release()

    def entry(self) -> FileEntry:
        """Size and hash of the file, of which every tensor must be finished."""
        self.hash_some(lambda: False)
        if self._hashed_bytes != self.size:
            raise AssertionError(f"{self.path.name} is not whole")
        return FileEntry(size=self.size, sha256=self._digest.hexdigest())

    @property
    def _next_end(self) -> int:
        """Where the first tensor not yet hashed ends, if it is finished."""
        at = self._hashed_tensors
        if at == len(self._names) or self._names[at] not in self._finished:
            return 0
        return self._offsets[self._names[at]] + self.tensors[self._names[at]].nbytes

    def _write_at(self, position: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], position + done)

    def close(self) -> None:
        """Close the file, if `open` has opened it."""
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
