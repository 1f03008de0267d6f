"""A Nemotron-4 `.nemo`, open for reading: its shape, its tokenizer and its twelve tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from nemotron_convert.source import nemo2
from nemotron_convert.source.archive import Archive, read_bytes
from nemotron_convert.source.arrays import StoredArray
from nemotron_convert.source.config_file import find_root, read_model_config
from nemotron_convert.source.containers import open_archive
from nemotron_convert.source.legacy import Legacy, find_ranks
from nemotron_convert.source.torch_dist import TorchDist
from nemotron_convert.source.zarr import Zarr
from nemotron_convert.tensor_map import EMBEDDING, TENSOR_MAP, TensorRule, rule_shape
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

WEIGHTS = "model_weights/"
PREFIX = "model."
METADATA_LIMIT = 1 << 16
TOKENIZER_LIMIT = 64 << 20


Opener = Callable[[TensorRule], StoredArray]


@dataclass(frozen=True)
class Source:
    """A `.nemo` whose tensors are all there and have the shapes its configuration asks for."""

    archive: Archive
    layout: str
    """"zarr", "torch_dist" or "legacy"."""
    config: ModelConfig
    vocab_size: int
    tensors: Mapping[str, StoredArray]
    """By Megatron's name."""

    @classmethod
    def open(cls, path: Path) -> Source:
        """NemotronError says what the file lacks."""
        archive = open_archive(path)
        try:
            config = read_model_config(archive)
            layout, opener = _opener(archive, *find_root(archive))
            tensors = {rule.source: opener(rule) for rule in TENSOR_MAP}
            vocab_size = tensors[EMBEDDING].shape[0]
            for rule in TENSOR_MAP:
                _check_shape(tensors[rule.source], rule, config, vocab_size)
        except BaseException:
            archive.close()
            raise
        return cls(archive, layout, config, vocab_size, tensors)

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


def _opener(archive: Archive, root: str, is_nemo2: bool) -> tuple[str, Opener]:
    """The layout's name and how its tensors are opened, by what is stored beside them."""
    weights = root + (nemo2.WEIGHTS if is_nemo2 else WEIGHTS)
    prefix = nemo2.TENSOR_PREFIX if is_nemo2 else PREFIX

    def stored(rule: TensorRule) -> str:
        return prefix + rule.source.removeprefix(PREFIX)

    if ranks := find_ranks(archive, root):
        return "legacy", Legacy(archive, ranks).open
    if not any(name.startswith(weights) for name in archive.members):
        raise NemotronError(f"no {weights} in it: there are no weights", where=archive.path)
    metadata = weights + "metadata.json"
    layout: object = None
    if metadata in archive.members:
        try:
            found = json.loads(read_bytes(archive, metadata, limit=METADATA_LIMIT))
            layout = found["sharded_backend"] if isinstance(found, dict) else None
        except (ValueError, KeyError, RecursionError) as error:
            raise NemotronError(
                f"{metadata} names no sharded_backend", where=archive.path
            ) from error
    elif any(name.endswith("/.zarray") for name in archive.members):
        layout = "zarr"
    elif weights + ".metadata" in archive.members:
        layout = "torch_dist"
    if layout == "zarr":
        arrays = Zarr(archive, weights)
        return layout, lambda rule: arrays.open(stored(rule), stacked=rule.stacked)
    if layout == "torch_dist":
        checkpoint = TorchDist(archive, weights)
        return layout, lambda rule: checkpoint.open(stored(rule), stacked=rule.stacked)
    raise NemotronError(
        f"the weights are stored as {layout!r}",
        where=archive.path,
        remedy="save the model with dist_ckpt_format zarr or torch_dist",
    )


def _check_shape(
    tensor: StoredArray, rule: TensorRule, config: ModelConfig, vocab_size: int
) -> None:
    shape = rule_shape(rule, config, vocab_size, tp=1)
    expected = (shape.rows, shape.columns) if len(shape.rank_shape) == 2 else (shape.columns,)
    if rule.stacked:
        expected = (config.num_layers, *expected)
    if tensor.shape != expected:
        raise NemotronError(
            f"tensor {rule.source} has shape {list(tensor.shape)}, the configuration asks for "
            f"{list(expected)}",
            where=tensor.archive.path,
        )
