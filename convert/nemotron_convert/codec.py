"""Compressed zarr chunks, decoded once and never to more bytes than their array says."""

from __future__ import annotations

import bz2
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable

import numcodecs.blosc
import numcodecs.lz4

from nemotron_convert.archive import Archive, Member
from nemotron_convert.errors import NemotronError

KEPT = 4
"""Decoded chunks in memory; threads work on neighbours."""
OVERHEAD = 1 << 16
"""By which a compressed chunk may be larger than a plain one."""

Decode = Callable[[bytes, int], bytes]


def _inflate(window: int) -> Decode:
    return lambda data, size: zlib.decompressobj(window).decompress(data, size + 1)


def _bunzip(data: bytes, size: int) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, size + 1)


def _blosc(data: bytes, size: int) -> bytes:
    stated, packed = (int.from_bytes(data[at : at + 4], "little") for at in (4, 12))
    fits = stated == size and packed == len(data)
    return bytes(numcodecs.blosc.decompress(data)) if fits else b""


def _lz4(data: bytes, size: int) -> bytes:
    stated = int.from_bytes(data[:4], "little")
    return bytes(numcodecs.lz4.decompress(data)) if stated == size else b""


DECODERS: dict[str, Decode] = {
    "blosc": _blosc,
    "bz2": _bunzip,
    "gzip": _inflate(31),
    "lz4": _lz4,
    "zlib": _inflate(15),
}
"""By numcodecs' id. None of them returns more than size + 1 bytes."""


class Codec:
    """The decoder of one array's chunks, each `size` bytes when decoded."""

    def __init__(self, archive: Archive, name: str, size: int) -> None:
        self._archive, self._name, self._size = archive, name, size
        self._decoded: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read_into(self, member: Member, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from the decoded chunk; NemotronError if it is not what it should be."""
        with self._lock:
            data = self._decoded.get(member.name)
            if data is None:
                data = self._decoded[member.name] = self._decode(member)
                if len(self._decoded) > KEPT:
                    self._decoded.popitem(last=False)
        buffer[:] = data[offset : offset + len(buffer)]

    def _decode(self, member: Member) -> bytes:
        packed = bytearray(member.size)
        self._archive.read_into(member, 0, memoryview(packed))
        try:
            data = DECODERS[self._name](bytes(packed), self._size)
        except (zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
            raise self._refusal(member, str(error)) from error
        if len(data) != self._size:
            raise self._refusal(member, f"it does not decode to the {self._size} bytes it should")
        return data

    def _refusal(self, member: Member, what: str) -> NemotronError:
        return NemotronError(
            f"chunk {member.name} cannot be decoded with {self._name}: {what}",
            where=self._archive.path,
            remedy="copy the checkpoint again",
        )
