"""Release of the memory that a mapped file takes in this process."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

MADV_DONTNEED = 4


def give_back(file: Path) -> None:
    """Remove the pages of `file` from this process's memory. Pages that are read again come back.

    The kernel would do so only under memory pressure, so that a file that was read once counts as
    used memory for as long as it is mapped. Only read-only mappings are touched, which loses no
    data (madvise(2)). No data is lost either if the kernel refuses.
    """
    libc = ctypes.CDLL(None)
    for start, end in _read_only_mappings(file.resolve()):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _read_only_mappings(file: Path) -> Iterator[tuple[int, int]]:
    """Yield the start and end addresses of the file's read-only mappings; the end is exclusive."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, _offset, _device, _inode, *name = line.split(maxsplit=5)
        if name == [str(file)] and "w" not in access:
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)
