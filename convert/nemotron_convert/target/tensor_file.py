"""A safetensors file whose layout is fixed before it is filled, and a reader of headers.

The format is an 8-byte little-endian length, a JSON header and the tensors' bytes without gaps.
Unlike the safetensors library, this writer lets threads fill disjoint parts of a file that is
larger than memory. The library can read the result.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemotron_convert.safetensors_header import StoredTensor, TensorSpec, read_tensors
from nemotron_core.errors import NemotronError
from nemotron_core.files import FileEntry

ALIGNMENT = 4096
"""Alignment in bytes of the first tensor and of direct I/O: a page, which is whole disk blocks."""
HASH_BYTES = 1 << 20
"""Bytes read at a time for the hash."""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate


class TensorFile:
    """A file that `open` creates and `write` fills; `write` may be called from any thread.

    Its SHA-256 is computed at the same time. Bytes that are written in the file's order are hashed
    as they are written. Bytes that were written out of order, or by an earlier run, are read again
    by `hash_some` once their tensor and all bytes before it are complete, so mostly from the page
    cache.
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
        """Write the header and reserve the file's space, so that a full disk is noticed at once.

        The tensors that the file already contains stay, because a resumed conversion needs them.
        Raises `OSError` if the file cannot be created or the disk is full.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._descriptor = os.open(self.path, flags, 0o644)
        os.pwrite(self._descriptor, self._header, 0)
        reserve(self._descriptor, self.size)
        os.ftruncate(self._descriptor, self.size)
        with suppress(OSError):  # some file systems have no direct I/O
            self._direct = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_DIRECT)

    def write(self, name: str, row: int, column: int, values: NDArray[np.generic]) -> None:
        """Write values [rows, columns] into a tensor, from element (`row`, `column`) on.

        A vector or a scalar counts as one row.
        """
        width, size = (self.tensors[name].shape or (1,))[-1], values.itemsize
        position = self._offsets[name] + (row * width + column) * size
        values = np.ascontiguousarray(values)
        if values.shape[1] == width:
            self._write_at(position, values.reshape(-1).view(np.uint8).data)
        else:
            for i, values_of_row in enumerate(values):
                self._write_at(position + i * width * size, values_of_row.view(np.uint8).data)

    def finish(self, name: str) -> None:
        """Record that all bytes of the tensor were written."""
        self._finished.add(name)

    def sync(self) -> None:
        """Make everything written so far durable."""
        os.fdatasync(self._descriptor)

    @property
    def can_hash(self) -> bool:
        """Whether a complete tensor can be hashed and no thread is hashing."""
        return self._hashable > self._hashed and not self._hashing.locked()

    def hash_some(self, stopped: Callable[[], bool]) -> None:
        """Hash the complete tensors that come next, unless another thread is hashing."""
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
        """Return the size and hash of the file. Every tensor must be finished."""
        self.hash_some(lambda: False)
        if self._hashed != self.size:
            raise AssertionError(f"{self.path.name} is not whole")
        return FileEntry(size=self.size, sha256=self._digest.hexdigest())

    @property
    def _hashable(self) -> int:
        """End of the complete tensors that follow the hashed bytes without a gap."""
        end = self._hashed
        index = bisect_right(self._ends, end)
        while index < len(self._names) and self._names[index] in self._finished:
            end = self._ends[index]
            index += 1
        return end

    def _write_at(self, position: int, data: memoryview) -> None:
        """Write bytes, and hash them if they follow the hashed bytes."""
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
        """Write past the page cache, which halves the work, and return whether that was possible.

        It is not if the file system has no direct I/O or something is not aligned.
        """
        address = np.frombuffer(data, np.uint8).ctypes.data
        if self._direct < 0 or (position | address | len(data)) % ALIGNMENT:
            return False
        try:
            return os.pwrite(self._direct, data, position) == len(data)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: it requires another alignment
                raise
            return False

    def close(self) -> None:
        """Close the file if it is open."""
        for descriptor in {self._descriptor, self._direct} - {-1}:
            os.close(descriptor)
        self._descriptor = self._direct = -1


def reserve(descriptor: int, size: int) -> None:
    """Reserve the first `size` bytes of a file, if the file system can do that.

    Raises `OSError` if the disk is full. `os.posix_fallocate` would write into every block where
    the file system cannot.
    """
    while _fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        error = ctypes.get_errno()
        if error in (errno.EOPNOTSUPP, errno.ENOSYS):
            return
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name.

    Raises `NemotronError` if the file cannot be read or its header and size disagree.
    """
    try:
        with path.open("rb") as file:
            descriptor = file.fileno()
            size = os.fstat(descriptor).st_size
            return read_tensors(lambda offset, length: os.pread(descriptor, length, offset), size)
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except ValueError as error:
        raise NemotronError(
            f"not a whole safetensors file: {error}", where=path, remedy="convert again"
        ) from error
