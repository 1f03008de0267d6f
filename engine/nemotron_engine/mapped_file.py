"""The memory that a mapped file takes in this process."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

MADV_DONTNEED = 4


def give_back(file: Path) -> None:
    """Take the pages of `file` out of this process's memory; what is read again comes back.

    The kernel would do so only under pressure, so that a file that was read once counts as used
    memory for as long as it is mapped. Only mappings that nobody can write to are touched: to them
    this loses nothing (madvise(2)), and nothing is lost either if the kernel refuses.
    """
    libc = ctypes.CDLL(None)
    for start, end in _read_only_mappings(file.resolve()):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _read_only_mappings(file: Path) -> Iterator[tuple[int, int]]:
    """First address of each, and the one behind its last."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, _offset, _device, _inode, *name = line.split(maxsplit=5)
        if name == [str(file)] and "w" not in access:
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)
