"""Which files a conversion writes, and which part of each source tensor goes where in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from nemotron_convert.model_config import ModelConfig
from nemotron_convert.shards import Block, Parallel
from nemotron_convert.tensor_file import TensorSpec
from nemotron_convert.tensor_map import HF_MAP, TENSOR_MAP, in_order, rule_shape, stages

HF_SHARD_BYTES = 10_000_000_000
"""A layer of Nemotron-4-340B has 7 GB; no tensor is divided."""


class Format(str, Enum):
    """What is written."""

    TRTLLM = "trtllm"
    HF = "hf"


@dataclass(frozen=True)
class Target:
    """A tensor of an output file, and the blocks of the source's matrix that it is made of."""

    file: str
    name: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Layout:
    """All output files, their tensors in the order in which data flows through the model."""

    files: Mapping[str, Mapping[str, TensorSpec]]
    targets: Mapping[tuple[str, int], tuple[Target, ...]]
    """By source tensor and global layer (0 outside the layers), in the same order."""
    gamma_offset: int
    """To be added to the source's norm weights."""

    def restrict(self, files: frozenset[str]) -> Layout:
        """The same, of some of its files only."""
        targets = {
            key: kept
            for key, all_of_it in self.targets.items()
            if (kept := tuple(target for target in all_of_it if target.file in files))
        }
        return Layout(
            {name: tensors for name, tensors in self.files.items() if name in files},
            targets,
            self.gamma_offset,
        )


def rank_name(rank: int) -> str:
    """File of one rank, counted over all stages: stage · TP + TP rank."""
    return f"rank{rank}.safetensors"


def trtllm_layout(config: ModelConfig, vocab_size: int, parallel: Parallel) -> Layout:
    """One file per rank."""
    files: dict[str, dict[str, TensorSpec]] = {
        rank_name(rank): {} for rank in range(parallel.world_size)
    }
    places = defaultdict(list)
    for rule in TENSOR_MAP:
        for stage, layer, name in stages(rule, parallel, config.num_layers):
            places[rule.target, layer].append((stage, name))
    targets: defaultdict[tuple[str, int], list[Target]] = defaultdict(list)
    shapes = {rule.target: rule_shape(rule, config, vocab_size, parallel.tp) for rule in TENSOR_MAP}
    for rule, layer in in_order(TENSOR_MAP, config.num_layers):
        shape = shapes[rule.target]
        for stage, name in places[rule.target, layer]:
            for tp in range(parallel.tp):
                file = rank_name(stage * parallel.tp + tp)
                blocks = tuple(block for block in shape.blocks if block.tp == tp)
                files[file][name] = TensorSpec("BF16", shape.rank_shape)
                targets[rule.source, layer].append(Target(file, name, blocks))
    return Layout(
        files,
        {key: tuple(value) for key, value in targets.items()},
        gamma_offset=1 if config.gamma_is_centered else 0,
    )


def hf_layout(config: ModelConfig, vocab_size: int, shard_bytes: int = HF_SHARD_BYTES) -> Layout:
    """Numbered files of at most `shard_bytes` each, or of one tensor that is larger."""
    shapes = {rule.target: rule_shape(rule, config, vocab_size, 1) for rule in HF_MAP}
    shards: list[dict[str, TensorSpec]] = [{}]
    parts: defaultdict[tuple[str, int], list[tuple[int, str, tuple[Block, ...]]]]
    parts = defaultdict(list)
    room = shard_bytes
    for rule, layer in in_order(HF_MAP, config.num_layers):
        shape = shapes[rule.target]
        spec = TensorSpec("BF16", shape.rank_shape)
        if spec.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        room -= spec.nbytes
        name = rule.target.format(layer=layer)
        shards[-1][name] = spec
        parts[rule.source, layer].append((len(shards) - 1, name, shape.blocks))
    names = _shard_names(len(shards))
    return Layout(
        dict(zip(names, shards, strict=True)),
        {
            key: tuple(Target(names[shard], name, blocks) for shard, name, blocks in value)
            for key, value in parts.items()
        },
        gamma_offset=0 if config.gamma_is_centered else -1,
    )


def _shard_names(count: int) -> list[str]:
    """As transformers names them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
