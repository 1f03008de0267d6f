"""A Nemotron-4 `.nemo` open for reading: its configuration, its tokenizer and its tensors."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from nemotron_convert.source import nemo2
from nemotron_convert.source.archive import Archive, read_bytes
from nemotron_convert.source.arrays import StoredArray
from nemotron_convert.source.config_file import ModelSettings, find_root, read_settings
from nemotron_convert.source.containers import open_archive
from nemotron_convert.source.distributed import Distributed
from nemotron_convert.source.kind import Kind, find_kind, require_convertible
from nemotron_convert.source.legacy import Legacy, find_ranks
from nemotron_convert.source.tokenizer import read_tokenizer
from nemotron_convert.source.torch_dist import TorchDist
from nemotron_convert.source.zarr import Zarr
from nemotron_convert.tensor_map import DROPPED, EMBEDDING, TENSOR_MAP, TensorRule, rule_shape
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

WEIGHTS = "model_weights/"
METADATA_LIMIT = 1 << 16
"""Largest size in bytes of the weights' `metadata.json`."""
SHOWN_TENSORS = 10
"""Largest number of tensors that an error names."""


class Tensors(Protocol):
    """The stored tensors of a `.nemo` by their canonical names."""

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors and other objects."""

    @property
    def unused(self) -> Collection[str]:
        """Names of those that were not opened."""

    def describe(self, name: str) -> str:
        """Return the type and the shape of a tensor for a person."""

    def open(self, rule: TensorRule) -> StoredArray:
        """Return the source tensor of a rule. Raises `NemotronError` if it is not as it should."""


@dataclass(frozen=True)
class Contents:
    """What is in a `.nemo` of any kind, before its tensors are opened."""

    archive: Archive
    layout: str
    """Storage format of the weights: "zarr", "torch_dist" or "legacy"."""
    settings: ModelSettings
    kind: Kind
    tensors: Tensors
    files: tuple[str, ...]
    """The members that decide the result: configuration, tokenizer and weights."""

    @classmethod
    def open(cls, path: Path, *, scratch: Path | None = None) -> Contents:
        """Open a `.nemo` or NeMo 2 folder. Raises `NemotronError` if it is none or is damaged.

        With `scratch`, a folder, a compressed archive is decompressed into it, once.
        """
        archive = open_archive(path, scratch)
        try:
            return cls._of(archive)
        except BaseException:
            archive.close()
            raise

    @classmethod
    def _of(cls, archive: Archive) -> Contents:
        root, is_nemo2 = find_root(archive)
        settings = read_settings(archive, root, is_nemo2=is_nemo2)
        weights = root + (nemo2.WEIGHTS if is_nemo2 else WEIGHTS)
        layout, tensors = _open_tensors(archive, root, weights)
        folders = (
            (weights,)
            if layout != "legacy"
            else tuple(member.name for member in find_ranks(archive, root).values())
        )
        config_name = root + (nemo2.CONFIG_NAME if is_nemo2 else "model_config.yaml")
        files = {config_name, settings.model.tokenizer_member} | {
            name for name in archive.members if name.startswith(folders)
        }
        kind = find_kind(settings.raw, tensors.names)
        return cls(archive, layout, settings, kind, tensors, tuple(sorted(files)))

    def unknown(self, ignored: Collection[str] = ()) -> dict[str, str]:
        """Return what is neither opened, nor dropped on purpose, nor ignored, with descriptions.

        The keys are names of tensors, `ignored` are patterns of names.
        """
        patterns = (*DROPPED, *ignored)
        return {
            name: self.tensors.describe(name)
            for name in sorted(self.tensors.unused)
            if not any(fnmatchcase(name, pattern) for pattern in patterns)
        }

    def dropped(self) -> dict[str, str]:
        """Return what is left out on purpose, with what it is."""
        return {
            name: what
            for name in sorted(self.tensors.unused)
            for pattern, what in DROPPED.items()
            if fnmatchcase(name, pattern)
        }

    def __enter__(self) -> Contents:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.archive.close()


@dataclass(frozen=True)
class Source:
    """A `.nemo` in which all tensors exist with the shapes that its configuration implies."""

    contents: Contents
    vocab_size: int
    tensors: Mapping[str, StoredArray]
    """The stored arrays by Megatron's names."""
    tokenizer: bytes = field(repr=False)
    """The serialized SentencePiece model."""
    ignored: tuple[str, ...] = ()
    """Stored tensors that are left out because the user said so."""

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        ignore: Collection[str] = (),
        is_lenient: bool = False,
        scratch: Path | None = None,
    ) -> Source:
        """Open a `.nemo` and check it, without reading the weights.

        With `scratch`, a folder, a compressed archive is decompressed into it, once.
        `ignore` are patterns of the names of tensors that may be left out. If `is_lenient`, the
        caller judges `unknown` and `contents.settings.faults`. Raises `NemotronError` if something
        is missing, is not understood or has a wrong shape.
        """
        contents = Contents.open(path, scratch=scratch)
        try:
            return cls.of(contents, ignore=ignore, is_lenient=is_lenient)
        except BaseException:
            contents.archive.close()
            raise

    @classmethod
    def of(
        cls, contents: Contents, *, ignore: Collection[str] = (), is_lenient: bool = False
    ) -> Source:
        """Return the checked source of `open`; it takes over the open archive."""
        path = contents.archive.path
        require_convertible(contents.kind, path)
        if not is_lenient:
            contents.settings.require_known(path)
        tensors = {rule.source: contents.tensors.open(rule) for rule in TENSOR_MAP}
        vocab_size = tensors[EMBEDDING].shape[0]
        for rule in TENSOR_MAP:
            _check_shape(tensors[rule.source], rule, contents.settings.model, vocab_size)
        ignored = _ignored(contents, ignore)
        unknown = contents.unknown(ignore)
        if unknown and not is_lenient:
            raise _not_understood(unknown, path)
        tokenizer = read_tokenizer(contents.archive, contents.settings, vocab_size)
        return cls(contents, vocab_size, tensors, tokenizer, ignored)

    @property
    def archive(self) -> Archive:
        return self.contents.archive

    @property
    def layout(self) -> str:
        """Storage format of the weights: "zarr", "torch_dist" or "legacy"."""
        return self.contents.layout

    @property
    def config(self) -> ModelConfig:
        return self.contents.settings.model

    @property
    def nbytes(self) -> int:
        """Size in bytes of all tensors together, as they are stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """The types in which the tensors are stored, such as "BF16"."""
        return tuple(sorted({tensor.dtype.value for tensor in self.tensors.values()}))

    def require_unchanged(self) -> None:
        """Raise `NemotronError` if a file that was read has changed since it was opened."""
        if changed := self.archive.changed(self.contents.files):
            more = f" and {len(changed) - 1} more" if changed[1:] else ""
            raise NemotronError(
                f"{changed[0]}{more} changed while it was read",
                where=self.archive.path,
                remedy="convert again when nothing writes to it any more",
            )

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.archive.close()


def _open_tensors(archive: Archive, root: str, weights: str) -> tuple[str, Tensors]:
    """Return the name of the weights' layout and its tensors.

    Raises `NemotronError` if there are no weights or their layout is not known.
    """
    if ranks := find_ranks(archive, root):
        return "legacy", Legacy(archive, ranks)
    if not any(name.startswith(weights) for name in archive.members):
        raise NemotronError(f"no {weights} in it: there are no weights", where=archive.path)
    layout = _distributed_layout(archive, weights)
    if layout == "zarr":
        return layout, Distributed(Zarr(archive, weights), archive.path)
    if layout == "torch_dist":
        return layout, Distributed(TorchDist(archive, weights), archive.path)
    raise NemotronError(
        f"the weights are stored as {layout!r}"[:200],
        where=archive.path,
        remedy="save the model with dist_ckpt_format zarr or torch_dist",
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


def _ignored(contents: Contents, patterns: Collection[str]) -> tuple[str, ...]:
    """Return the tensors that the user's patterns leave out.

    Raises `NemotronError` if a pattern leaves out nothing, because it may be misspelt.
    """
    unused = sorted(contents.unknown())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in unused):
            raise NemotronError(
                f"{pattern} matches no tensor that is not understood",
                where="--ignore-tensor",
                remedy="`nemotron inspect` lists these tensors",
            )
    return tuple(name for name in unused if any(fnmatchcase(name, p) for p in patterns))


def _not_understood(unknown: Mapping[str, str], path: Path) -> NemotronError:
    shown = [f"{name} ({what})" for name, what in unknown.items()][:SHOWN_TENSORS]
    rest = len(unknown) - len(shown)
    more = f" and {rest} more" if rest else ""
    return NemotronError(
        f"Nemotron-4 has no such tensors: {', '.join(shown)}{more}",
        where=path,
        remedy="this is another model, or tuned in a way that is not carried out; --ignore-tensor "
        "PATTERN leaves tensors out, which changes what the model answers unless they were unused",
    )


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
