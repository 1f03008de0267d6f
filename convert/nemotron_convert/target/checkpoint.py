"""Reading a TensorRT-LLM checkpoint back, unsharded: what the CPU lane is built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from nemotron_convert.shards import Block, Parallel
from nemotron_convert.target.layout import Precision, ScaleKind, rank_name, trtllm_scale_name
from nemotron_convert.target.manifest import Manifest, read_manifest, require_unchanged
from nemotron_convert.target.tensor_file import StoredTensor, TensorSpec, read_header
from nemotron_convert.target.trtllm_config import CONFIG_NAME, TrtLlmConfig
from nemotron_convert.tensor_map import TENSOR_MAP, RuleShape, TensorRule, placements, rule_shape
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import TOKENIZER_NAME

DTYPES = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F32": np.float32}


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint folder; `tensor` undoes TP and PP."""

    folder: Path
    config: TrtLlmConfig
    manifest: Manifest
    ranks: tuple[Mapping[str, StoredTensor], ...]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Check config, manifest and every rank file's header; NemotronError says what is wrong."""
        manifest = read_manifest(folder)
        if manifest.format != "trtllm":
            raise NemotronError(
                f"this is a folder of the format {manifest.format}",
                where=folder,
                remedy="convert with --format trtllm",
            )
        path = folder / CONFIG_NAME
        try:
            config = TrtLlmConfig.model_validate_json(path.read_bytes())
        except OSError as error:
            raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "file"
            raise NemotronError(f"{key}: {first['msg']}", where=path) from error
        if (config.mapping.tp_size, config.mapping.pp_size) != (manifest.tp, manifest.pp):
            raise NemotronError("config.json and manifest.json name different splits", where=folder)
        world = config.mapping.world_size
        ranks = tuple(read_header(folder / rank_name(rank)) for rank in range(world))
        checkpoint = cls(folder, config, manifest, ranks)
        checkpoint._check_tensors()
        return checkpoint

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER_NAME

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the content, as the manifest states it."""
        return self.manifest.content_hash

    @property
    def precision(self) -> Precision:
        """What of it is FP8."""
        return self.config.precision

    def scale(self, name: str, kind: ScaleKind) -> float:
        """A scale of the linear layer whose weight has this name; the same on every rank.

        KeyError if the checkpoint has no such scale.
        """
        merge = self._merges[name]
        rank = merge.stage * self.config.mapping.tp_size
        return float(self.read(rank, trtllm_scale_name(merge.name, kind))[0])

    def check_hashes(self) -> None:
        """Read every file and compare with the manifest; NemotronError names the changed ones."""
        require_unchanged(self.folder, self.manifest)

    def tensor(self, name: str) -> NDArray[Any]:
        """The whole tensor as it would be at TP=1, PP=1; `name` counts layers over the model.

        bfloat16 or float8_e4m3fn (ml_dtypes). `attention.qkv.weight` is [all q; all k; all v];
        norm weights hold gamma + 1. KeyError if the model has no such tensor.
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
        split = Parallel(self.config.mapping.tp_size, self.config.mapping.pp_size)
        found = {}
        for rule in TENSOR_MAP:
            here = rule_shape(rule, model, self.config.vocab_size, split.tp)
            whole = rule_shape(rule, model, self.config.vocab_size, 1)
            for stage, layer, name in placements(rule, split, model.num_layers):
                found[rule.target.format(layer=layer)] = _Merge(rule, stage, name, here, whole)
        return found

    def _check_tensors(self) -> None:
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
        """A tensor of one rank's file as it is there, mapped into memory."""
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
    """An unsharded tensor: its stage and name there, its shares, and itself as one rank's."""

    rule: TensorRule
    stage: int
    name: str
    split: RuleShape
    whole: RuleShape


def _copy_overlap(part: NDArray[Any], block: Block, whole: NDArray[Any], target: Block) -> None:
    """Copy what a rank's block and a block of the whole have in common of the source."""
    top, bottom = max(block.row, target.row), min(block.row + block.rows, target.row + target.rows)
    left = max(block.column, target.column)
    right = min(block.column + block.columns, target.column + target.columns)
    if top >= bottom or left >= right:
        return
    from_row, from_column = block.rank_row + top - block.row, left - block.column
    to_row, to_column = target.rank_row + top - target.row, left - target.column
    rows, columns = bottom - top, right - left
    whole[to_row : to_row + rows, to_column : to_column + columns] = part[
        from_row : from_row + rows, from_column : from_column + columns
    ]
