"""A Nemotron-4 `.nemo`, open for reading: its shape, its tokenizer and its twelve tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from nemotron_convert.archive import Archive, open_archive, read_bytes
from nemotron_convert.errors import NemotronError
from nemotron_convert.model_config import ModelConfig, find_root, read_model_config
from nemotron_convert.tensor_map import TENSOR_MAP, Place, TensorRule, rule_shape
from nemotron_convert.zarr import ZarrArray, open_zarr

WEIGHTS = "model_weights/"
METADATA_LIMIT = 1 << 16
TOKENIZER_LIMIT = 64 << 20
VOCABULARY = "model.embedding.word_embeddings.weight"


@dataclass(frozen=True)
class Source:
    """A `.nemo` whose tensors are all there and have the shapes its configuration asks for."""

    archive: Archive
    config: ModelConfig
    vocab_size: int
    tensors: Mapping[str, ZarrArray]
    """By Megatron's name."""

    @classmethod
    def open(cls, path: Path) -> Source:
        """NemotronError says what the file lacks."""
        archive = open_archive(path)
        try:
            config = read_model_config(archive)
            folder = find_root(archive) + WEIGHTS
            _require_zarr(archive, folder)
            tensors = {rule.source: _open_tensor(archive, folder, rule) for rule in TENSOR_MAP}
            vocab_size = tensors[VOCABULARY].rows
            for rule in TENSOR_MAP:
                _check_shape(tensors[rule.source], rule, config, vocab_size)
        except BaseException:
            archive.close()
            raise
        return cls(archive, config, vocab_size, tensors)

    def read_tokenizer(self) -> bytes:
        """The serialized SentencePiece model."""
        return read_bytes(self.archive, self.config.tokenizer_member, limit=TOKENIZER_LIMIT)

    @property
    def nbytes(self) -> int:
        """Size of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.archive.close()


def _require_zarr(archive: Archive, folder: str) -> None:
    """Refuse the layouts that are not read, by the name they go by."""
    if not any(name.startswith(folder) for name in archive.members):
        raise NemotronError(f"no {folder} in it: there are no weights", where=archive.path)
    metadata = folder + "metadata.json"
    backend: object = "zarr"
    if metadata in archive.members:
        try:
            backend = json.loads(read_bytes(archive, metadata, limit=METADATA_LIMIT))
            backend = backend["sharded_backend"] if isinstance(backend, dict) else None
        except (ValueError, KeyError, RecursionError) as error:
            raise NemotronError(
                f"{metadata} names no sharded_backend", where=archive.path
            ) from error
    elif not any(name.endswith("/.zarray") for name in archive.members):
        backend = "legacy (pickled ranks)"
    if backend != "zarr":
        raise NemotronError(
            f"the weights are stored as {backend!r}",
            where=archive.path,
            remedy="save the model with dist_ckpt_format zarr",
        )


def _open_tensor(archive: Archive, folder: str, rule: TensorRule) -> ZarrArray:
    path = f"{folder}{rule.source}/"
    if path + ".zarray" not in archive.members:
        raise NemotronError(f"tensor {rule.source} is missing", where=archive.path)
    return open_zarr(archive, path, stacked=rule.place is Place.EVERY_LAYER)


def _check_shape(tensor: ZarrArray, rule: TensorRule, config: ModelConfig, vocab_size: int) -> None:
    shape = rule_shape(rule, config, vocab_size, tp=1)
    expected = (shape.rows, shape.columns) if len(shape.rank_shape) == 2 else (shape.columns,)
    if rule.place is Place.EVERY_LAYER:
        expected = (config.num_layers, *expected)
    if tensor.shape != expected:
        raise NemotronError(
            f"tensor {rule.source} has shape {list(tensor.shape)}, the configuration asks for "
            f"{list(expected)}",
            where=tensor.archive.path,
        )
