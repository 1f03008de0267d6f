"""Reader of files of `torch.save`: a zip with a pickle and the bytes of each tensor."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

from nemotron_convert.source.archive import Archive, Member, refuse_pointer, short_name
from nemotron_convert.source.number_types import WeightType
from nemotron_convert.source.safe_pickle import Record, load_pickle
from nemotron_core.errors import NemotronError

PICKLE_LIMIT = 16 << 20
"""Largest size in bytes of the pickle."""
READ_LIMIT = 16 << 20
"""Largest number of bytes read at once, for example of a zip's directory."""
LOCAL_HEADER = struct.Struct("<26xHH")
"""The header of a zip's entry, of which the lengths of the name and the extra field are used."""
WEIGHT_STORAGES = {
    "BFloat16Storage": WeightType.BF16,
    "HalfStorage": WeightType.F16,
    "FloatStorage": WeightType.F32,
}
"""Torch's storages of weights."""
STORAGES = (*WEIGHT_STORAGES, "ByteStorage", "LongStorage")
ZIP_ERRORS = (
    *(zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError),
    *(ValueError, LookupError, ArithmeticError, struct.error),
)
"""The exceptions that `zipfile` raises for a damaged zip."""
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
"""The classes and functions that a state dict of Megatron names."""


@dataclass(frozen=True)
class SavedTensor:
    """A contiguous tensor whose elements begin at byte `offset` of the member."""

    shape: tuple[int, ...]
    offset: int
    dtype: WeightType


class TorchZip:
    """A file of `torch.save` that takes `length` bytes of a member, from byte `start` on.

    Raises `NemotronError` if these bytes are not such a file.
    """

    def __init__(self, archive: Archive, member: Member, start: int, length: int) -> None:
        self._file = _MemberFile(archive, member, start, length)
        self._start = start
        self._length = length
        self._where = f"{archive.path}: {member.name}"
        try:
            self._zip = zipfile.ZipFile(self._file)
            entries = self._zip.infolist()
        except ZIP_ERRORS as error:
            refuse_pointer(archive, member)
            raise NemotronError(
                f"not a file of torch.save: {error}"[:200], where=self._where
            ) from error
        self._entries = {entry.filename.partition("/")[2]: entry for entry in entries}

    def load(self) -> Any:
        """Return the saved object, in which `Record` stands for every class (see `safe_pickle`).

        Raises `NemotronError` if the pickle is damaged, too large or names another class.
        """
        if "byteorder" in self._entries and self._read("byteorder", limit=16) != b"little":
            raise NemotronError("saved on a big-endian machine", where=self._where)
        data = self._read("data.pkl", limit=PICKLE_LIMIT)
        return load_pickle(data, GLOBALS, where=self._where)

    def find(self, name: str, tensor: Any) -> SavedTensor:
        """Return where a tensor of the loaded object is stored; `name` is for the error.

        Raises `NemotronError` if it is not a contiguous tensor of BF16, F16 or F32.
        """
        try:
            return self._find(tensor)
        except (AttributeError, IndexError, TypeError, ValueError, struct.error) as error:
            raise NemotronError(
                f"tensor {name} is not stored as torch.save stores one: {error}"[:300],
                where=self._where,
            ) from error

    def _find(self, tensor: Record) -> SavedTensor:
        if type(tensor).__name__ == "_rebuild_parameter":
            tensor = tensor.args[0]
        storage, first, shape, strides, *_rest = tensor.args
        _tag, storage_type, key, _device, count = storage
        if not (isinstance(storage_type, type) and isinstance(key, str)):
            raise TypeError("its storage is none of torch's")
        dtype = WEIGHT_STORAGES.get(storage_type.__name__)
        if dtype is None:
            raise ValueError(f"it is a {storage_type.__name__}, not BF16, F16 or F32")
        check_sizes(shape)
        check_sizes(strides)
        check_sizes((first, count))
        if tuple(strides) != tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))):
            raise ValueError("it is not contiguous")
        entry = self._entry(f"data/{key}")
        if entry.file_size != count * dtype.itemsize or not 0 <= first <= count - math.prod(shape):
            raise ValueError(f"its storage has {entry.file_size} bytes")
        self._file.seek(entry.header_offset)
        name_length, extra_length = LOCAL_HEADER.unpack(self._file.read(LOCAL_HEADER.size))
        begin = entry.header_offset + LOCAL_HEADER.size + int(name_length) + int(extra_length)
        if begin + entry.file_size > self._length:
            raise ValueError("it is cut short")
        offset = self._start + begin + int(first) * dtype.itemsize
        return SavedTensor(tuple(shape), offset, dtype)

    def _entry(self, name: str) -> zipfile.ZipInfo:
        """Return an entry of the zip. Raises `NemotronError` unless it is stored as plain bytes."""
        entry = self._entries.get(name)
        if entry is None:
            raise NemotronError(f"there is no {short_name(name)} in it", where=self._where)
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise NemotronError(f"{name} is compressed or encrypted", where=self._where)
        if entry.compress_size != entry.file_size:
            raise NemotronError(f"{name} has two sizes", where=self._where)
        return entry

    def _read(self, name: str, *, limit: int) -> bytes:
        entry = self._entry(name)
        if entry.file_size > limit:
            raise NemotronError(
                f"{name} has {entry.file_size} bytes, more than the {limit} it may have",
                where=self._where,
            )
        try:
            return self._zip.read(entry)
        except ZIP_ERRORS as error:
            raise NemotronError(
                f"{name} cannot be read: {error}"[:200], where=self._where
            ) from error


def check_sizes(sizes: Any) -> None:
    """Raise `ValueError` unless `sizes`, which come from a pickle, are up to three numbers."""
    if not (
        isinstance(sizes, tuple | list)
        and len(sizes) <= 3
        and all(type(size) is int and 0 <= size < 1 << 40 for size in sizes)
    ):
        raise ValueError("its sizes are not up to three numbers")


class _MemberFile(io.RawIOBase):
    """A byte range of a member as a file object that can be read and sought."""

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

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes.

        Raises `ValueError` for more than READ_LIMIT, which a forged zip can make `zipfile` request.
        """
        rest = max(0, self._length - self._position)
        count = rest if size < 0 else min(size, rest)
        if count > READ_LIMIT:
            raise ValueError(f"its directory has {count} bytes")
        buffer = bytearray(count)
        self._archive.read_into(self._member, self._start + self._position, memoryview(buffer))
        self._position += len(buffer)
        return bytes(buffer)
