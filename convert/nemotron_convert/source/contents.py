"""What is in a checkpoint of any kind: settings, and tensors before they are opened."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Protocol

from nemotron_convert.source import nemo2
from nemotron_convert.source.archive import Archive, read_bytes
from nemotron_convert.source.arrays import StoredArray
from nemotron_convert.source.chat_template import TemplateReport, compare_template
from nemotron_convert.source.config_file import (
    ModelSettings,
    find_root,
    has_root,
    read_settings,
)
from nemotron_convert.source.containers import open_archive
from nemotron_convert.source.distributed import METADATA_LIMIT, Distributed, distributed_layout
from nemotron_convert.source.hf_config import (
    CONFIG_NAME,
    read_config,
    read_hf_settings,
    read_vocab_size,
)
from nemotron_convert.source.hf_folder import (
    is_hf_folder,
    open_weights,
    require_model,
    weight_files,
)
from nemotron_convert.source.hf_tensors import HfTensors
from nemotron_convert.source.kind import Kind, find_kind
from nemotron_convert.source.legacy import Legacy, find_ranks
from nemotron_convert.source.tokenizer import find_tokenizer
from nemotron_convert.source.torch_dist import TorchDist
from nemotron_convert.source.zarr import Zarr
from nemotron_convert.tensor_map import DROPPED, TensorRule
from nemotron_core.errors import NemotronError

WEIGHTS = "model_weights/"
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

    def open_layers(self, rule: TensorRule, num_layers: int) -> dict[int, StoredArray]:
        """Return those layers of a rule's tensor that are there, each as an array by itself.

        The model has `num_layers` layers. Raises `NemotronError` if one is not as it should be.
        """


@dataclass(frozen=True)
class Contents:
    """What is in a `.nemo` of any kind, before its tensors are opened."""

    archive: Archive
    layout: str
    """Storage format of the weights: "zarr", "torch_dist", "legacy" or "safetensors"."""
    settings: ModelSettings
    kind: Kind
    tensors: Tensors
    files: tuple[str, ...]
    """The members that decide the result: configuration, tokenizer and weights."""
    template: TemplateReport | None = None
    """What a chat template that came with the weights does, if there is one."""

    @classmethod
    def open(cls, path: Path, *, scratch: Path | None = None) -> Contents:
        """Open a `.nemo`, a NeMo 2 folder or a Hugging Face folder.

        With `scratch`, a folder, a compressed archive is decompressed into it, once. Raises
        `NemotronError` if it is none of these, or is damaged.
        """
        archive = open_archive(path, scratch)
        try:
            return cls._of(archive)
        except BaseException:
            archive.close()
            raise

    @classmethod
    def _of(cls, archive: Archive) -> Contents:
        if is_hf_folder(archive) and not has_root(archive):
            return cls._of_hf(archive)
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
        files.discard("")  # an adapter may have no tokenizer
        kind = find_kind(settings.raw, tensors.names)
        return cls(archive, layout, settings, kind, tensors, tuple(sorted(files)))

    @classmethod
    def _of_hf(cls, archive: Archive) -> Contents:
        require_model(archive)
        config = read_config(archive)
        weights = open_weights(archive)
        tokenizer = find_tokenizer(archive)
        settings = read_hf_settings(archive, config, tokenizer)
        is_tied = config.get("tie_word_embeddings") is True
        vocab_size = read_vocab_size(archive, config)
        tensors = HfTensors(archive, weights, settings.model, vocab_size, is_tied)
        template = compare_template(archive)
        kind = find_kind(settings.raw, tensors.names)
        if template is not None and kind is Kind.BASE:
            kind = Kind.SFT  # base models have no chat template
        files = (CONFIG_NAME, tokenizer, *weight_files(archive))
        return cls(archive, "safetensors", settings, kind, tensors, files, template)

    @cached_property
    def base(self) -> str | None:
        """The base model of an adapter as the file names it, or `None` if it names none."""
        name = self.settings.raw.get("restore_from_path")
        metadata = next((n for n in self.archive.members if n.endswith(nemo2.METADATA)), None)
        if metadata is not None:
            try:
                content = json.loads(read_bytes(self.archive, metadata, limit=METADATA_LIMIT))
                name = content["model_ckpt_path"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise NemotronError(
                    f"{metadata} names no model_ckpt_path", where=self.archive.path
                ) from error
        return name if isinstance(name, str) and name.isprintable() else None

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

    def identity(self) -> Iterator[str]:
        """Yield lines that change whenever a file does that decides the result.

        They hold name, size, offset and modification time of each file. Hashing the content would
        take as long as a conversion.
        """
        for name in self.files:
            member = self.archive.members[name]
            yield f"{name} {member.size} {member.offset} {self.archive.modified(name)}"

    def require_unchanged(self) -> None:
        """Raise `NemotronError` if a file that was read has changed since it was opened."""
        if changed := self.archive.changed(self.files):
            more = f" and {len(changed) - 1} more" if changed[1:] else ""
            raise NemotronError(
                f"{changed[0]}{more} changed while it was read",
                where=self.archive.path,
                remedy="convert again when nothing writes to it any more",
            )

    def __enter__(self) -> Contents:
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
    layout = distributed_layout(archive, weights)
    if layout == "zarr":
        return layout, Distributed(Zarr(archive, weights), archive.path)
    if layout == "torch_dist":
        return layout, Distributed(TorchDist(archive, weights), archive.path)
    raise NemotronError(
        f"the weights are stored as {layout!r}"[:200],
        where=archive.path,
        remedy="save the model with dist_ckpt_format zarr or torch_dist",
    )


def list_tensors(tensors: Mapping[str, str]) -> str:
    """Return the first tensors of a table of names and descriptions as text for an error."""
    shown = [f"{name} ({what})" for name, what in tensors.items()][:SHOWN_TENSORS]
    rest = len(tensors) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
