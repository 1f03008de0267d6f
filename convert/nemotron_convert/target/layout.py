"""The files that a conversion writes, and the place of each source tensor in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from nemotron_convert.safetensors_header import TensorSpec
from nemotron_convert.shards import Block, Parallel
from nemotron_convert.tensor_map import (
    HEAD,
    HF_MAP,
    LINEARS,
    TENSOR_MAP,
    Split,
    TensorRule,
    in_data_order,
    placements,
    rule_shape,
)
from nemotron_core.model_config import ModelConfig

GAMMAS = frozenset(rule.source for rule in TENSOR_MAP if rule.is_gamma)
"""Source tensors that are norm weights."""
HF_SHARD_BYTES = 10_000_000_000
"""Usual largest size of a file. No tensor is divided, and a layer of the 340B model has 7 GB."""


class Format(str, Enum):
    """The format of the output."""

    TRTLLM = "trtllm"
    HF = "hf"


class Dtype(str, Enum):
    """The type of the linear layers' weights or of the KV cache."""

    BF16 = "bf16"
    FP8 = "fp8"


class ScaleKind(Enum):
    """The tensor to which an F32 scale belongs."""

    WEIGHT = "weight"
    INPUT = "input"
    KV_CACHE = "kv_cache"


@dataclass(frozen=True)
class Precision:
    """The parts of the model that are FP8."""

    weights: Dtype = Dtype.BF16
    """Type of the linear layers' weights and, if it is FP8, of their inputs."""
    kv_cache: Dtype = Dtype.BF16
    exact_norms: bool = False
    """Whether norm weights are F32, because scores show the rounding of gamma + 1 to BF16."""

    def spec(self, source: str, shape: tuple[int, ...]) -> TensorSpec:
        """Return the spec of a tensor of this shape that is made from the tensor `source`."""
        if self.exact_norms and source in GAMMAS:
            return TensorSpec("F32", shape)
        quantized = self.weights is Dtype.FP8 and source in LINEARS
        return TensorSpec("F8_E4M3" if quantized else "BF16", shape)

    def scales(self, rule: TensorRule) -> Iterator[ScaleKind]:
        """Yield the kinds of the scales that belong to the tensor of a rule."""
        if rule.source not in LINEARS:
            return
        if self.weights is Dtype.FP8:
            yield ScaleKind.WEIGHT
            yield ScaleKind.INPUT
        if self.kv_cache is Dtype.FP8 and rule.split in (Split.QKV, Split.KEYS, Split.VALUES):
            yield ScaleKind.KV_CACHE


BF16_ONLY = Precision()


@dataclass(frozen=True)
class Target:
    """A tensor of an output file, and the blocks of the source matrix from which it is made."""

    file: str
    name: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class ScaleTarget:
    """The place of an F32 scale in an output file."""

    file: str
    name: str
    kind: ScaleKind


@dataclass(frozen=True)
class Layout:
    """The output files and what they contain."""

    files: Mapping[str, Mapping[str, TensorSpec]]
    """The tensors of each file, in the order in which data flows through the model."""
    targets: Mapping[tuple[str, int], tuple[Target, ...]]
    """The tensors made from each source tensor and global layer (0 outside the layers)."""
    gamma_offset: int
    """The number to add to the source's norm weights."""
    scales: Mapping[tuple[str, int], tuple[ScaleTarget, ...]]
    """The scales of each source tensor and global layer; empty in BF16."""
    has_exact_norms: bool = False
    """Whether norm weights are F32."""

    def restrict(self, files: frozenset[str]) -> Layout:
        """Return the part of the layout that concerns `files`."""
        targets = {
            key: kept
            for key, every_target in self.targets.items()
            if (kept := tuple(target for target in every_target if target.file in files))
        }
        scales = {
            key: tuple(target for target in every_target if target.file in files)
            for key, every_target in self.scales.items()
        }
        return Layout(
            {name: tensors for name, tensors in self.files.items() if name in files},
            targets,
            self.gamma_offset,
            scales,
            self.has_exact_norms,
        )


def rank_name(rank: int) -> str:
    """Return the file name of a rank, which counts over all stages: stage · TP + TP rank."""
    return f"rank{rank}.safetensors"


TRTLLM_SCALES = {
    ScaleKind.WEIGHT: "weights_scaling_factor",
    ScaleKind.INPUT: "activation_scaling_factor",
}
TRTLLM_KV_SCALE = "kv_cache_scaling_factor"
HF_SCALES = {ScaleKind.WEIGHT: "weight_scale", ScaleKind.INPUT: "input_scale"}
HF_KV_SCALES = {Split.KEYS: "k_scale", Split.VALUES: "v_scale"}


def trtllm_scale_name(weight: str, kind: ScaleKind) -> str:
    """Return the name of a scale of the linear layer whose weight is `weight`.

    >>> trtllm_scale_name("transformer.layers.0.attention.qkv.weight", ScaleKind.KV_CACHE)
    'transformer.layers.0.attention.kv_cache_scaling_factor'
    """
    linear = weight.removesuffix(".weight")
    if kind is ScaleKind.KV_CACHE:
        return linear.rpartition(".")[0] + "." + TRTLLM_KV_SCALE
    return f"{linear}.{TRTLLM_SCALES[kind]}"


def _hf_scale_name(rule: TensorRule, weight: str, kind: ScaleKind) -> str:
    suffix = HF_KV_SCALES[rule.split] if kind is ScaleKind.KV_CACHE else HF_SCALES[kind]
    return weight.removesuffix("weight") + suffix


def trtllm_layout(
    config: ModelConfig, vocab_size: int, parallel: Parallel, precision: Precision
) -> Layout:
    """Return the layout of a TensorRT-LLM checkpoint: one file for each rank."""
    files: dict[str, dict[str, TensorSpec]] = {
        rank_name(rank): {} for rank in range(parallel.world_size)
    }
    stages_and_names = defaultdict(list)
    for rule in TENSOR_MAP:
        for stage, layer, name in placements(rule, parallel, config.num_layers):
            stages_and_names[rule.target, layer].append((stage, name))
    targets: defaultdict[tuple[str, int], list[Target]] = defaultdict(list)
    scales: defaultdict[tuple[str, int], list[ScaleTarget]] = defaultdict(list)
    # Scales come after the weights: four bytes before a weight would move it off its page.
    tails: defaultdict[str, dict[str, TensorSpec]] = defaultdict(dict)
    shapes = {rule.target: rule_shape(rule, config, vocab_size, parallel.tp) for rule in TENSOR_MAP}
    for rule, layer in in_data_order(TENSOR_MAP, config.num_layers):
        shape = shapes[rule.target]
        for stage, name in stages_and_names[rule.target, layer]:
            for tp in range(parallel.tp):
                file = rank_name(stage * parallel.tp + tp)
                blocks = tuple(block for block in shape.blocks if block.tp_rank == tp)
                files[file][name] = precision.spec(rule.source, shape.rank_shape)
                targets[rule.source, layer].append(Target(file, name, blocks))
                for kind in precision.scales(rule):
                    scale = trtllm_scale_name(name, kind)
                    tails[file][scale] = TensorSpec("F32", (1,))
                    scales[rule.source, layer].append(ScaleTarget(file, scale, kind))
    return Layout(
        {name: tensors | tails[name] for name, tensors in files.items()},
        {key: tuple(value) for key, value in targets.items()},
        gamma_offset=1 if config.gamma_is_centered else 0,
        scales={key: tuple(value) for key, value in scales.items()},
        has_exact_norms=precision.exact_norms,
    )


def hf_layout(
    config: ModelConfig,
    vocab_size: int,
    precision: Precision,
    shard_bytes: int = HF_SHARD_BYTES,
    *,
    is_reward: bool = False,
) -> Layout:
    """Return the layout of a Hugging Face folder.

    The tensors go to numbered files of at most `shard_bytes` of weights, or of one larger tensor.
    With `is_reward` there is no output layer, and the numbers leave room for one more file, which
    has the head.
    """
    rules = tuple(rule for rule in HF_MAP if not (is_reward and rule.source == HEAD))
    shapes = {rule.target: rule_shape(rule, config, vocab_size, 1) for rule in rules}
    shards: list[dict[str, TensorSpec]] = [{}]
    parts: defaultdict[tuple[str, int], list[tuple[int, str, tuple[Block, ...]]]]
    parts = defaultdict(list)
    scales: defaultdict[tuple[str, int], list[tuple[int, str, ScaleKind]]] = defaultdict(list)
    tails: defaultdict[int, dict[str, TensorSpec]] = defaultdict(dict)
    room = shard_bytes
    for rule, layer in in_data_order(rules, config.num_layers):
        shape = shapes[rule.target]
        spec = precision.spec(rule.source, shape.rank_shape)
        if spec.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        room -= spec.nbytes
        name = rule.target.format(layer=layer)
        shards[-1][name] = spec
        parts[rule.source, layer].append((len(shards) - 1, name, shape.blocks))
        for kind in precision.scales(rule):
            scale = _hf_scale_name(rule, name, kind)
            tails[len(shards) - 1][scale] = TensorSpec("F32", ())
            scales[rule.source, layer].append((len(shards) - 1, scale, kind))
    names = shard_names(len(shards) + is_reward)[: len(shards)]
    return Layout(
        {name: shard | tails[i] for i, (name, shard) in enumerate(zip(names, shards, strict=True))},
        {
            key: tuple(Target(names[shard], name, blocks) for shard, name, blocks in value)
            for key, value in parts.items()
        },
        gamma_offset=0 if config.gamma_is_centered else -1,
        scales={
            key: tuple(ScaleTarget(names[shard], name, kind) for shard, name, kind in value)
            for key, value in scales.items()
        },
    )


def shard_names(count: int) -> list[str]:
    """Return the file names that transformers uses for so many files."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
