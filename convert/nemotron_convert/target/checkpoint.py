"""Reader of our TensorRT-LLM checkpoints that undoes the split; the CPU lane is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nemotron_convert.safetensors_header import StoredTensor, TensorSpec
from nemotron_convert.shards import Block, Parallel
from nemotron_convert.target.json_files import parse_json
from nemotron_convert.target.layout import Precision, ScaleKind, rank_name, trtllm_scale_name
from nemotron_convert.target.manifest import Manifest, read_manifest, require_unchanged
from nemotron_convert.target.tensor_file import read_header
from nemotron_convert.target.trtllm_config import CONFIG_NAME, TrtLlmConfig
from nemotron_convert.target.virtual_tokens import read_virtual_tokens
from nemotron_convert.tensor_map import TENSOR_MAP, RuleShape, TensorRule, placements, rule_shape
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_core.reward import HEAD_NAME, RewardHead

DTYPES = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F32": np.float32}
"""NumPy types of the dtypes as safetensors spells them."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, whose tensors can be read as they are on a rank or unsharded."""

    folder: Path
    config: TrtLlmConfig
    manifest: Manifest
    ranks: tuple[Mapping[str, StoredTensor], ...]
    """The tensors in each rank's file, by name."""

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Open a checkpoint and check its config, its manifest and the headers of all rank files.

        Raises `NemotronError` if a file is missing or not valid, or a tensor has a wrong shape.
        """
        manifest = read_manifest(folder, "trtllm")
        path = folder / CONFIG_NAME
        try:
            config = parse_json(TrtLlmConfig, path.read_bytes(), path)
        except OSError as error:
            raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
        if (config.mapping.tp_size, config.mapping.pp_size) != (manifest.tp, manifest.pp):
            raise NemotronError("config.json and manifest.json name different splits", where=folder)
        world = config.mapping.world_size
        if (config.kind or "text") != manifest.kind:
            raise NemotronError("config.json and manifest.json name different kinds", where=folder)
        ranks = tuple(read_header(folder / rank_name(rank)) for rank in range(world))
        checkpoint = cls(folder, config, manifest, ranks)
        checkpoint._check_tensors()
        return checkpoint

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER_NAME

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the content, computed from the manifest's hashes."""
        return self.manifest.content_hash

    @property
    def precision(self) -> Precision:
        """The parts of the model that are FP8."""
        return self.config.precision

    def reward_head(self) -> RewardHead | None:
        """Return the head of a reward model, or `None` if this model generates text.

        Raises `NemotronError` if it cannot be read or is one for another model.
        """
        if self.manifest.kind != "reward":
            return None
        head = RewardHead.read(self.folder)
        if head.weight.shape[1] != self.config.hidden_size:
            raise NemotronError(
                f"the head is for {head.weight.shape[1]} hidden channels, the model has "
                f"{self.config.hidden_size}",
                where=self.folder / HEAD_NAME,
                remedy="convert again",
            )
        return head

    def virtual_tokens(self) -> NDArray[np.float32] | None:
        """Return the vectors [N, hidden size] that stand before every prompt, if there are any.

        Raises `NemotronError` if they cannot be read or are those of another model.
        """
        count = self.manifest.virtual_tokens
        if not count:
            return None
        return read_virtual_tokens(self.folder, (count, self.config.hidden_size))

    def scale(self, name: str, kind: ScaleKind) -> float:
        """Return a scale of the linear layer whose weight is `name`; it is the same on every rank.

        Raises `KeyError` if the checkpoint has no such scale.
        """
        merge = self._merges[name]
        rank = merge.stage * self.config.mapping.tp_size
        return float(self.read(rank, trtllm_scale_name(merge.name, kind))[0])

    def check_hashes(self) -> None:
        """Read every file. Raises `NemotronError` that names those that have changed."""
        require_unchanged(self.folder, self.manifest)

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a tensor as it is at TP = 1, PP = 1; `name` counts layers over the whole model.

        The dtype is bfloat16 or float8_e4m3fn (of ml_dtypes). The rows of `attention.qkv.weight`
        are all queries, then all keys, then all values. Norm weights are gamma. Raises `KeyError`
        if the model has no such tensor.
        """
        merge = self._merges[name]
        if len(merge.whole.rank_shape) == 1:
            return self.read(merge.stage * self.config.mapping.tp_size, merge.name).copy()
        parts = [
            self.read(merge.stage * self.config.mapping.tp_size + tp, merge.name)
            for tp in range(self.config.mapping.tp_size)
        ]
        whole = np.zeros(merge.whole.rank_shape, parts[0].dtype)
        for block in merge.split.blocks:
            for target in merge.whole.blocks:
                _copy_overlap(parts[block.tp_rank], block, whole, target)
        return whole

    @cached_property
    def _merges(self) -> dict[str, _Merge]:
        model = self.config.model_shape()
        parallel = Parallel(self.config.mapping.tp_size, self.config.mapping.pp_size)
        merges = {}
        for rule in TENSOR_MAP:
            split_shape = rule_shape(rule, model, self.config.vocab_size, parallel.tp)
            whole = rule_shape(rule, model, self.config.vocab_size, 1)
            for stage, layer, name in placements(rule, parallel, model.num_layers):
                merge = _Merge(rule, stage, name, split_shape, whole)
                merges[rule.target.format(layer=layer)] = merge
        return merges

    def _check_tensors(self) -> None:
        """Raise `NemotronError` if a tensor is missing or is not what the config implies."""
        tp = self.config.mapping.tp_size
        for merge in self._merges.values():
            expected = {merge.name: self.precision.spec(merge.rule.source, merge.split.rank_shape)}
            for kind in self.precision.scales(merge.rule):
                expected[trtllm_scale_name(merge.name, kind)] = TensorSpec("F32", (1,))
            for rank in range(merge.stage * tp, (merge.stage + 1) * tp):
                for name, spec in expected.items():
                    self._check_tensor(rank, name, spec)

    def _check_tensor(self, rank: int, name: str, expected: TensorSpec) -> None:
        stored = self.ranks[rank].get(name)
        if stored is None or stored.spec != expected:
            raise NemotronError(
                f"tensor {name} should be {expected.dtype} {list(expected.shape)}, "
                + (f"is {stored.spec.dtype} {list(stored.spec.shape)}" if stored else "is missing"),
                where=self.folder / rank_name(rank),
                remedy="convert again",
            )

    def read(self, rank: int, name: str) -> NDArray[Any]:
        """Return a tensor of one rank's file, mapped into memory."""
        stored = self.ranks[rank][name]
        return np.memmap(
            self.folder / rank_name(rank),
            dtype=DTYPES[stored.spec.dtype],
            mode="r",
            offset=stored.offset,
            shape=stored.spec.shape,
        )


@dataclass(frozen=True)
class _Merge:
    """The plan by which an unsharded tensor is merged from the ranks of its stage."""

    rule: TensorRule
    stage: int
    name: str
    """Name of the tensor in the files of the stage's ranks."""
    split: RuleShape
    """The rule at the checkpoint's TP."""
    whole: RuleShape
    """The rule at TP = 1."""


def _copy_overlap(part: NDArray[Any], block: Block, whole: NDArray[Any], target: Block) -> None:
    """Copy the elements of the source that are in a rank's `block` and in `target`.

    `part` is the rank's tensor, `whole` the unsharded one, and `target` a block of the latter.
    """
    top, bottom = max(block.row, target.row), min(block.row + block.rows, target.row + target.rows)
    left = max(block.column, target.column)
    right = min(block.column + block.columns, target.column + target.columns)
    if top >= bottom or left >= right:
        return
    part_row, part_column = block.rank_row + top - block.row, left - block.column
    whole_row, whole_column = target.rank_row + top - target.row, left - target.column
    rows, columns = bottom - top, right - left
    whole[whole_row : whole_row + rows, whole_column : whole_column + columns] = part[
        part_row : part_row + rows, part_column : part_column + columns
    ]
