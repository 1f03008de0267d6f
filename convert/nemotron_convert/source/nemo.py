"""A Nemotron-4 `.nemo` open for reading: its configuration, its tokenizer and its tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
"""Beginning of every tensor's name in the tensor map and in a `.nemo`."""
METADATA_LIMIT = 1 << 16
"""Largest size in bytes of the weights' `metadata.json`."""
TOKENIZER_LIMIT = 64 << 20
"""Largest size in bytes of the SentencePiece model."""

Opener = Callable[[TensorRule], StoredArray]
"""Opens the source tensor of a rule."""


@dataclass(frozen=True)
class Source:
    """A `.nemo` in which all tensors exist with the shapes that its configuration implies."""

    archive: Archive
    layout: str
    """Storage format of the weights: "zarr", "torch_dist" or "legacy"."""
    config: ModelConfig
    vocab_size: int
    tensors: Mapping[str, StoredArray]
    """The stored arrays by Megatron's names."""

    @classmethod
    def open(cls, path: Path) -> Source:
        """Open a `.nemo` or NeMo 2 folder and check it, without reading the weights.

        Raises `NemotronError` if something is missing, is not understood or has a wrong shape.
        """
        archive = open_archive(path)
        try:
            config = read_model_config(archive)
            layout, open_tensor = _opener(archive, *find_root(archive))
            tensors = {rule.source: open_tensor(rule) for rule in TENSOR_MAP}
            vocab_size = tensors[EMBEDDING].shape[0]
            for rule in TENSOR_MAP:
                _check_shape(tensors[rule.source], rule, config, vocab_size)
        except BaseException:
            archive.close()
            raise
        return cls(archive, layout, config, vocab_size, tensors)

    def read_tokenizer(self) -> bytes:
        """Return the serialized SentencePiece model."""
        return read_bytes(self.archive, self.config.tokenizer_member, limit=TOKENIZER_LIMIT)

    @property
    def nbytes(self) -> int:
        """Size in bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.archive.close()


def _opener(archive: Archive, root: str, is_nemo2: bool) -> tuple[str, Opener]:
    """Return the name of the weights' layout and a function that opens its tensors.

    Raises `NemotronError` if there are no weights or their layout is not known.
    """
    weights = root + (nemo2.WEIGHTS if is_nemo2 else WEIGHTS)
    prefix = nemo2.TENSOR_PREFIX if is_nemo2 else PREFIX
    if ranks := find_ranks(archive, root):
        return "legacy", Legacy(archive, ranks).open
    if not any(name.startswith(weights) for name in archive.members):
        raise NemotronError(f"no {weights} in it: there are no weights", where=archive.path)
    layout = _distributed_layout(archive, weights)
    reader: Zarr | TorchDist
    if layout == "zarr":
        reader = Zarr(archive, weights)
    elif layout == "torch_dist":
        reader = TorchDist(archive, weights)
    else:
        raise NemotronError(
            f"the weights are stored as {layout!r}",
            where=archive.path,
            remedy="save the model with dist_ckpt_format zarr or torch_dist",
        )
    return layout, lambda rule: reader.open(
        prefix + rule.source.removeprefix(PREFIX), stacked=rule.stacked
    )


def _distributed_layout(archive: Archive, weights: str) -> Any:
    """Return the layout that `metadata.json` names; without that file, judge by other files."""
    metadata = weights + "metadata.json"
    if metadata in archive.members:
        try:
            content = json.loads(read_bytes(archive, metadata, limit=METADATA_LIMIT))
            return content["sharded_backend"] if isinstance(content, dict) else None
        except (ValueError, KeyError, RecursionError) as error:
            raise NemotronError(
                f"{metadata} names no sharded_backend", where=archive.path
            ) from error
    if any(name.endswith("/.zarray") for name in archive.members):
        return "zarr"
    return "torch_dist" if weights + ".metadata" in archive.members else None


def _check_shape(
    tensor: StoredArray, rule: TensorRule, config: ModelConfig, vocab_size: int
) -> None:
    """Raise `NemotronError` if the tensor has another shape than its rule has for this model."""
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
