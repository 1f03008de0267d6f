"""Reader of PyTorch's distributed checkpoint format ("torch_dist") that does not need torch.

`.metadata` is a pickle with the place of each block of each tensor: a byte range of a file
`__{rank}_{i}.distcp`. Each block is what `torch.save` writes for one tensor: a zip, stored without
compression, that contains a pickle of the tensor's shape (`data.pkl`) and its bytes (`data/0`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemotron_convert.source.archive import Archive, Member, read_bytes, refuse_pointer
from nemotron_convert.source.arrays import (
    Chunk,
    StoredArray,
    as_layer_row_column,
    check_cover,
    check_shape,
)
from nemotron_convert.source.number_types import WeightType
from nemotron_convert.source.safe_pickle import Record, load_pickle
from nemotron_convert.source.torch_zip import TorchZip, check_sizes
from nemotron_core.errors import NemotronError
from nemotron_core.memory import free_memory

METADATA_NAME = ".metadata"
MEMORY_FACTOR = 16
"""Bytes of memory that a byte of `.metadata` takes at most while it is read."""

_CHECKPOINT = "torch.distributed.checkpoint."
METADATA_GLOBALS = frozenset(
    {(f"{_CHECKPOINT}metadata", name) for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex",
        "StorageMeta", "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )}
    | {(f"{_CHECKPOINT}planner", name) for name in (
        "BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType",
    )}
    | {(f"{_CHECKPOINT}filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout")}
    | {("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")}
    | {("torch", name) for name in ("Size", "bfloat16", "float16", "float32", "uint8", "int64")}
)  # fmt: skip
"""The classes that a `.metadata` of Megatron or of any PyTorch version names."""


DTYPES = {
    "bfloat16": WeightType.BF16,
    "float16": WeightType.F16,
    "float32": WeightType.F32,
}
"""The types that are read, by torch's names."""


class _Block(NamedTuple):
    """A stored block: its place in the tensor, and the byte range of a file that holds its zip."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class _Tensor:
    """The entry of one tensor in `.metadata`."""

    dtype: str
    shape: tuple[int, ...]
    blocks: tuple[_Block, ...]


class TorchDist:
    """The tensors of one checkpoint."""

    def __init__(self, archive: Archive, weights: str) -> None:
        self._archive = archive
        self._weights = weights
        where = f"{archive.path}: {weights}{METADATA_NAME}"
        if weights + METADATA_NAME not in archive.members:
            raise NemotronError(f"no {METADATA_NAME} beside the weights", where=archive.path)
        size, free = archive.members[weights + METADATA_NAME].size, free_memory()
        if size > free // MEMORY_FACTOR:
            raise NemotronError(
                f"an index of {size:,} bytes may take {size * MEMORY_FACTOR:,} bytes of memory; "
                f"{free:,} are free",
                where=where,
                remedy="convert on a machine with more memory",
            )
        data = read_bytes(archive, weights + METADATA_NAME, limit=size)
        metadata = load_pickle(data, METADATA_GLOBALS, where=where)
        try:
            self._tensors, self._objects = _read_index(metadata)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise NemotronError(
                f"not a checkpoint's index: {error!r}"[:200], where=where
            ) from error

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors and of all objects that are no tensors."""
        return (*self._tensors, *self._objects)

    def describe(self, name: str) -> str:
        """Return the type and the shape of a tensor for a person, or that it is none."""
        tensor = self._tensors.get(name)
        return f"{tensor.dtype} {list(tensor.shape)}" if tensor else "not a tensor"

    def open(self, name: str, *, stacked: bool) -> StoredArray:
        """Return the tensor `name`; with `stacked`, its axis 0 counts layers.

        Raises `NemotronError` if the tensor is missing, of another type or not complete.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise NemotronError(f"tensor {name} is missing", where=self._archive.path)
        dtype = DTYPES.get(tensor.dtype)
        if dtype is None:
            raise NemotronError(
                f"tensor {name} is {tensor.dtype}",
                where=self._archive.path,
                remedy=f"only {', '.join(DTYPES)} are read",
            )
        check_shape(name, tensor.shape, self._archive.path, stacked=stacked)
        if not tensor.blocks:
            raise NemotronError(f"tensor {name} has no blocks", where=self._archive.path)
        chunks = tuple(
            chunk for block in tensor.blocks for chunk in self._chunks(name, block, dtype, stacked)
        )
        first = tensor.blocks[0].sizes
        array = StoredArray(self._archive, name, tensor.shape, first, chunks, dtype)
        check_cover(array, stacked=stacked)
        return array

    def _chunks(self, name: str, block: _Block, dtype: WeightType, stacked: bool) -> list[Chunk]:
        """Return one chunk for each layer of a block."""
        layers, rows, columns = as_layer_row_column(block.sizes, stacked=stacked, missing=1)
        layer, row, column = as_layer_row_column(block.offsets, stacked=stacked, missing=0)
        member, start = self._find_bytes(name, block, dtype)
        pitch = columns * dtype.itemsize
        return [
            Chunk(member, start + i * rows * pitch, pitch, layer + i, row, rows, column, columns)
            for i in range(layers)
        ]

    def _find_bytes(self, name: str, block: _Block, dtype: WeightType) -> tuple[Member, int]:
        """Return the file that holds a block, and the byte at which the block's elements begin."""
        path = self._weights + block.file
        where = f"{self._archive.path}: {path}"
        member = self._archive.members.get(path)
        if member is None:
            raise NemotronError(f"{path} is missing", where=self._archive.path)
        if not 0 <= block.start <= block.start + block.length <= member.size:
            refuse_pointer(self._archive, member)
            raise NemotronError(
                f"tensor {name} should lie at bytes {block.start} to "
                f"{block.start + block.length}, the file has {member.size}",
                where=where,
                remedy="copy the checkpoint again",
            )
        tensor_zip = TorchZip(self._archive, member, block.start, block.length)
        stored = tensor_zip.find(name, tensor_zip.load())
        if (stored.shape, stored.dtype) != (block.sizes, dtype):
            raise NemotronError(
                f"tensor {name} has a block of {stored.dtype.value} {list(stored.shape)} where its "
                f"index says {dtype.value} {list(block.sizes)}",
                where=where,
            )
        return member, stored.offset


def _read_index(metadata: Any) -> tuple[dict[str, _Tensor], list[str]]:
    """Return the tensors that an unpickled `.metadata` describes, and the names of other objects.

    Raises one of several exceptions of Python's own if it is not what torch would write.
    """
    blocks: defaultdict[str, list[_Block]] = defaultdict(list)
    sizes: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}
    entries = {
        name: entry
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(name, str) and hasattr(entry, "chunks")
    }
    for name, entry in entries.items():
        for chunk in entry.chunks:
            sizes[name, _integers(chunk.offsets)] = _integers(chunk.sizes)
    for index, info in metadata.storage_data.items():
        offset = getattr(index, "offset", None)  # only tensors have one
        if offset is None or _text(index.fqn) not in entries:
            continue
        offsets = _integers(offset)
        blocks[index.fqn].append(
            _Block(
                offsets,
                sizes[index.fqn, offsets],
                _text(info.relative_path),
                *_integers((info.offset, info.length)),
            )
        )
    tensors = {
        name: _Tensor(_dtype(entry.properties), _integers(entry.size), tuple(blocks.get(name, ())))
        for name, entry in entries.items()
    }
    return tensors, [_text(name) for name in metadata.state_dict_metadata if name not in entries]


def _dtype(properties: Any) -> str:
    """Return the dtype's name. `TensorProperties` pickles a tuple, in old versions a dict."""
    dtype = properties.dtype if hasattr(properties, "dtype") else properties.state[0]
    return _text(dtype.__name__)


def _integers(size: Any) -> tuple[int, ...]:
    """Return the numbers of a `torch.Size` or of a tuple, or raise `ValueError`."""
    values = size.args[0] if isinstance(size, Record) else size
    check_sizes(values)
    return tuple(values)


def _text(value: Any) -> str:
    """Return `value` if it is a string, or raise `TypeError`."""
    if not isinstance(value, str):
        raise TypeError(f"a name that is a {type(value).__name__}")
    return value
