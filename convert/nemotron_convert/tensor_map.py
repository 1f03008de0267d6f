"""Which Megatron tensor becomes which TensorRT-LLM tensor, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from nemotron_convert.errors import NemotronError
from nemotron_convert.model_config import ModelConfig
from nemotron_convert.shards import (
    Block,
    Parallel,
    replicate,
    split_columns,
    split_qkv,
    split_rows,
)


class Split(Enum):
    """How a tensor is spread over the TP ranks."""

    REPLICATED = "replicated"
    ROWS = "rows"
    COLUMNS = "columns"
    QKV = "qkv"


class Place(Enum):
    """Which pipeline stages hold a tensor."""

    FIRST = "first stage"
    EVERY_LAYER = "the layer's stage"
    LAST = "last stage"


@dataclass(frozen=True)
class TensorRule:
    """One row of the map. `target` has `{layer}` where the layer counts from 0 on its stage."""

    source: str
    target: str
    shape: tuple[str, ...]
    """Names of sizes, see `sizes`; (rows, columns), or (columns,) for a vector."""
    split: Split
    place: Place
    is_gamma: bool = False
    """TensorRT-LLM wants LayerNorm1P's gamma + 1."""

    @property
    def stacked(self) -> bool:
        """Axis 0 of the source counts layers."""
        return self.place is Place.EVERY_LAYER


LAYERS = "model.decoder.layers."
_LAYER_RULES = (
    ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight", Split.REPLICATED),
    ("self_attention.linear_qkv.layer_norm_bias", "input_layernorm.bias", Split.REPLICATED),
    ("self_attention.linear_qkv.weight", "attention.qkv.weight", Split.QKV),
    ("self_attention.linear_proj.weight", "attention.dense.weight", Split.COLUMNS),
    ("mlp.linear_fc1.layer_norm_weight", "post_layernorm.weight", Split.REPLICATED),
    ("mlp.linear_fc1.layer_norm_bias", "post_layernorm.bias", Split.REPLICATED),
    ("mlp.linear_fc1.weight", "mlp.fc.weight", Split.ROWS),
    ("mlp.linear_fc2.weight", "mlp.proj.weight", Split.COLUMNS),
)
_LAYER_SHAPES = {
    "attention.qkv.weight": ("qkv", "hidden"),
    "attention.dense.weight": ("hidden", "heads"),
    "mlp.fc.weight": ("ffn", "hidden"),
    "mlp.proj.weight": ("hidden", "ffn"),
}

TENSOR_MAP: tuple[TensorRule, ...] = (
    TensorRule(
        "model.embedding.word_embeddings.weight",
        "transformer.vocab_embedding.weight",
        ("vocab", "hidden"),
        Split.ROWS,
        Place.FIRST,
    ),
    *(
        TensorRule(
            LAYERS + source,
            "transformer.layers.{layer}." + target,
            _LAYER_SHAPES.get(target, ("hidden",)),
            split,
            Place.EVERY_LAYER,
            is_gamma=target.endswith("layernorm.weight"),
        )
        for source, target, split in _LAYER_RULES
    ),
    TensorRule(
        "model.decoder.final_layernorm.weight",
        "transformer.ln_f.weight",
        ("hidden",),
        Split.REPLICATED,
        Place.LAST,
        is_gamma=True,
    ),
    TensorRule(
        "model.decoder.final_layernorm.bias",
        "transformer.ln_f.bias",
        ("hidden",),
        Split.REPLICATED,
        Place.LAST,
    ),
    TensorRule(
        "model.output_layer.weight",
        "lm_head.weight",
        ("vocab", "hidden"),
        Split.ROWS,
        Place.LAST,
    ),
)


@dataclass(frozen=True)
class RuleShape:
    """A rule at one model's sizes and one TP: the source matrix and each rank's share of it."""

    rows: int
    columns: int
    rank_shape: tuple[int, ...]
    blocks: tuple[Block, ...]


def rule_shape(rule: TensorRule, config: ModelConfig, vocab_size: int, tp: int) -> RuleShape:
    """Sizes and blocks of `rule`. Source: [rows, columns] per layer, a vector is one row."""
    sizes = {
        "vocab": vocab_size,
        "hidden": config.hidden_size,
        "ffn": config.intermediate_size,
        "heads": config.num_heads * config.head_size,
        "qkv": config.qkv_rows,
    }
    shape = tuple(sizes[name] for name in rule.shape)
    columns = shape[-1]
    rows = shape[0] if len(shape) == 2 else 1
    if rule.split is Split.REPLICATED:
        return RuleShape(rows, columns, shape, tuple(replicate(rows, columns, tp)))
    if rule.split is Split.ROWS:
        share = -(-rows // tp)
        return RuleShape(rows, columns, (share, columns), tuple(split_rows(rows, columns, tp)))
    if rule.split is Split.COLUMNS:
        blocks = tuple(split_columns(rows, columns, tp))
        return RuleShape(rows, columns, (rows, columns // tp), blocks)
    qkv = split_qkv(config.num_heads, config.num_kv_heads, config.head_size, columns, tp)
    rank_heads = config.num_heads // tp + 2 * max(1, config.num_kv_heads // tp)
    return RuleShape(rows, columns, (rank_heads * config.head_size, columns), tuple(qkv))


def stages(rule: TensorRule, parallel: Parallel, num_layers: int) -> Iterator[tuple[int, int, str]]:
    """(stage, global layer, target name on that stage) for each copy of the rule's tensor."""
    if rule.place is Place.FIRST:
        yield 0, 0, rule.target
    elif rule.place is Place.LAST:
        yield parallel.pp - 1, 0, rule.target
    else:
        for stage in range(parallel.pp):
            for local, layer in enumerate(parallel.layers(stage, num_layers)):
                yield stage, layer, rule.target.format(layer=local)


def find_rule(target: str) -> tuple[TensorRule, int]:
    """The rule and global layer of an unsharded tensor's name; NemotronError if there is none."""
    parts = target.split(".")
    layer = int(parts[2]) if target.startswith("transformer.layers.") else 0
    for rule in TENSOR_MAP:
        if rule.target.format(layer=layer) == target:
            return rule, layer
    raise NemotronError(f"no tensor is called {target}")
