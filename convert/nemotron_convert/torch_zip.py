"""What `torch.save` writes: a zip with a pickle of the object and each tensor's plain bytes."""

from __future__ import annotations

import io
import lzma
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

from nemotron_convert.archive import Archive, Member
from nemotron_convert.arrays import BF16_BYTES
from nemotron_convert.errors import NemotronError
from nemotron_convert.pickled import Record, load_pickle

ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)
"""What the library raises for damaged files."""
PICKLE_LIMIT = 64 << 20
LOCAL_HEADER = struct.Struct("<26xHH")
"""The end of a zip entry's header: the lengths of its name and of its extra field."""
STORAGES = ("BFloat16Storage", "ByteStorage", "FloatStorage", "HalfStorage", "LongStorage")
GLOBALS = frozenset(
    {("torch", name) for name in STORAGES}
    | {("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")}
    | {
        ("collections", "OrderedDict"),
        ("_io", "BytesIO"),
        ("_codecs", "encode"),
        ("torch.storage", "UntypedStorage"),
    }
)


@dataclass(frozen=True)
class SavedTensor:
    """A contiguous BF16 tensor: its elements begin at byte `offset` of the member."""

    shape: tuple[int, ...]
    offset: int


class TorchZip:
    """`length` bytes of a member, from `start` on, that `torch.save` has written."""

    def __init__(self, archive: Archive, member: Member, start: int, length: int) -> None:
        self._file = _MemberFile(archive, member, start, length)
        self._start = start
        self._length = length
        self._where = f"{archive.path}: {member.name}"
        try:
            self._zip = zipfile.ZipFile(self._file)
        except ZIP_ERRORS as error:
            raise NemotronError(f"not a file of torch.save: {error}", where=self._where) from error
        self._entries = {i.filename.partition("/")[2]: i for i in self._zip.infolist()}

    def load(self) -> Any:
        """The saved object, as Records; see `pickled`."""
        entry = self._entry("data.pkl")
        if entry.file_size > PICKLE_LIMIT:
            raise NemotronError(f"data.pkl has {entry.file_size} bytes", where=self._where)
        order = self._entries.get("byteorder")
        if order is not None and self._read(order) != b"little":
            raise NemotronError("saved on a big-endian machine", where=self._where)
        data = self._read(entry)
        return load_pickle(data, GLOBALS, where=self._where)

    def find(self, name: str, tensor: Any) -> SavedTensor:
        """Where a tensor of the loaded object lies; NemotronError if it is not plain BF16."""
        try:
            return self._find(tensor)
        except (AttributeError, IndexError, TypeError, ValueError, struct.error) as error:
            raise NemotronError(
                f"tensor {name} is not stored as torch.save stores one: {error}", where=self._where
            ) from error

    def _find(self, tensor: Record) -> SavedTensor:
        if type(tensor).__name__ == "_rebuild_parameter":
            tensor = tensor.args[0]
        storage, first, shape, strides, *_rest = tensor.args
        _kind, storage_type, key, _device, count = storage
        if storage_type.__name__ != "BFloat16Storage":
            raise ValueError(f"it is a {storage_type.__name__}, not BF16")
        if tuple(strides) != tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))):
            raise ValueError("it is not contiguous")
        entry = self._entry(f"data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError("its bytes are compressed or encrypted")
        if entry.file_size != count * BF16_BYTES or not 0 <= first <= count - math.prod(shape):
            raise ValueError(f"its storage has {entry.file_size} bytes")
        self._file.seek(entry.header_offset)
        name_length, extra_length = LOCAL_HEADER.unpack(self._file.read(LOCAL_HEADER.size))
        begin = entry.header_offset + LOCAL_HEADER.size + int(name_length) + int(extra_length)
        if begin + entry.file_size > self._length:
            raise ValueError("it is cut short")
        return SavedTensor(tuple(shape), self._start + begin + int(first) * BF16_BYTES)

    def _read(self, entry: zipfile.ZipInfo) -> bytes:
        """A small entry; one that lies about its size or its place is refused."""
        try:
            with self._zip.open(entry) as stream:
                data = stream.read(PICKLE_LIMIT + 1)
        except ZIP_ERRORS as error:
            raise NemotronError(
                f"{entry.filename} cannot be read: {error}", where=self._where
            ) from error
        if len(data) > PICKLE_LIMIT:
            raise NemotronError(f"{entry.filename} is larger than it may be", where=self._where)
        return data

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            raise NemotronError(f"there is no {name} in it", where=self._where)
        return self._entries[name]


class _MemberFile(io.RawIOBase):
    """A part of a member as a file to read and seek in."""

    def __init__(self, archive: Archive, member: Member, start: int, length: int) -> None:
        self._archive = archive
        self._member = member
        self._start = start
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._position))
        if count:
            self._archive.read_into(self._member, self._start + self._position, view[:count])
        self._position += count
        return count
