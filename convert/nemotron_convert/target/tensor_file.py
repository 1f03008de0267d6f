"""A safetensors file, laid out before it is filled.

The format is an 8-byte little-endian length, a JSON header and the tensors' bytes without holes.
Writing it here, and not with the safetensors library, lets threads fill disjoint parts of a file
that is larger than memory; the library reads what comes out.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemotron_core.errors import NemotronError
from nemotron_core.files import FileEntry

DTYPE_BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}
ALIGNMENT = 4096
"""Of the tensors' start, and of direct I/O: a page, and a multiple of every disk's block."""
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

    SHA-256 goes along: what is written in the file's order is hashed as it is written. What was
    written out of order, or by an earlier run, is read again by `hash_some` as soon as its tensor
    is whole and there is no gap before it, so mostly from memory.
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
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        self._header = len(header).to_bytes(8, "little") + header
        self._offsets = {name: len(self._header) + offset for name, offset in offsets.items()}
        self.size = len(self._header) + end
        self._descriptor = self._direct = -1
        self._ends = [self._offsets[name] + spec.nbytes for name, spec in tensors.items()]
        self._names = list(tensors)
        self._finished: set[str] = set()
        self._digest = hashlib.sha256(self._header)
        self._hashed = len(self._header)
        self._hashing = threading.Lock()

    def open(self) -> None:
        """Write the header and reserve the room, so that a full disk is noticed at once.

        What the file already holds stays: a resumed conversion counts on it.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._descriptor = os.open(self.path, flags, 0o644)
        os.pwrite(self._descriptor, self._header, 0)
        os.posix_fallocate(self._descriptor, 0, self.size)
        os.ftruncate(self._descriptor, self.size)
        with suppress(OSError):  # some file systems have no direct I/O
            self._direct = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_DIRECT)

    def write(self, name: str, row: int, column: int, values: NDArray[np.generic]) -> None:
        """Put values [rows, columns] of the tensor's width into it (vector, scalar: one row)."""
        width, size = (self.tensors[name].shape or (1,))[-1], values.itemsize
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
        return self._hashable > self._hashed and not self._hashing.locked()

    def hash_some(self, stopped: Callable[[], bool]) -> None:
        """Hash the whole tensors that come next, unless another thread is at it."""
        if not self._hashing.acquire(blocking=False):
            return
        try:
            buffer = memoryview(bytearray(HASH_BYTES))
            while (end := self._hashable) > self._hashed and not stopped():
                part = buffer[: min(HASH_BYTES, end - self._hashed)]
                count = os.preadv(self._descriptor, [part], self._hashed)
                self._digest.update(part[:count])
                self._hashed += count
        finally:
            self._hashing.release()

    def entry(self) -> FileEntry:
        """Size and hash of the file, of which every tensor must be finished."""
        self.hash_some(lambda: False)
        if self._hashed != self.size:
            raise AssertionError(f"{self.path.name} is not whole")
        return FileEntry(size=self.size, sha256=self._digest.hexdigest())

    @property
    def _hashable(self) -> int:
        """End of the whole tensors that follow what is hashed, without a gap."""
        end = self._hashed
        at = bisect_right(self._ends, end)
        while at < len(self._names) and self._names[at] in self._finished:
            end = self._ends[at]
            at += 1
        return end

    def _write_at(self, position: int, data: memoryview) -> None:
        if not self._write_direct(position, data):
            done = 0
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], position + done)
        if position == self._hashed and self._hashing.acquire(blocking=False):
            try:
                if position == self._hashed:
                    self._digest.update(data)
                    self._hashed += len(data)
            finally:
                self._hashing.release()

    def _write_direct(self, position: int, data: memoryview) -> bool:
        """From the buffer to the disk, past the page cache: half the work, where it can be done."""
        address = np.frombuffer(data, np.uint8).ctypes.data
        if self._direct < 0 or (position | address | len(data)) % ALIGNMENT:
            return False
        try:
            return os.pwrite(self._direct, data, position) == len(data)
        except OSError as error:
            if error.errno != errno.EINVAL:  # which asks for another alignment
                raise
            return False

    def close(self) -> None:
        """Close the file, if `open` has opened it."""
        for descriptor in {self._descriptor, self._direct} - {-1}:
            os.close(descriptor)
        self._descriptor = self._direct = -1


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
