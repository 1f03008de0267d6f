"""Which Megatron tensor becomes which TensorRT-LLM or Hugging Face tensor, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from nemotron_convert.shards import (
    Block,
    HeadKind,
    Parallel,
    replicate,
    split_columns,
    split_qkv,
    split_rows,
    take_heads,
)
from nemotron_core.model_config import ModelConfig


class Split(Enum):
    """How a tensor is spread over the TP ranks, or which part of it is taken."""

    REPLICATED = "replicated"
    ROWS = "rows"
    COLUMNS = "columns"
    QKV = "qkv"
    QUERIES = "queries"
    KEYS = "keys"
    VALUES = "values"


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
    """Of the source's matrix, in names of sizes: (rows, columns), or (columns,) for a vector."""
    split: Split
    place: Place
    is_gamma: bool = False
    """A norm's weight, of which some formats store gamma and some gamma - 1."""

    @property
    def stacked(self) -> bool:
        """Axis 0 of the source counts layers."""
        return self.place is Place.EVERY_LAYER


LAYERS = "model.decoder.layers."
EMBEDDING = "model.embedding.word_embeddings.weight"
HEAD = "model.output_layer.weight"
_SHAPES = {
    "self_attention.linear_qkv.weight": ("qkv", "hidden"),
    "self_attention.linear_proj.weight": ("hidden", "heads"),
    "mlp.linear_fc1.weight": ("ffn", "hidden"),
    "mlp.linear_fc2.weight": ("hidden", "ffn"),
}


def _layer(source: str, target: str, split: Split = Split.REPLICATED) -> TensorRule:
    shape = _SHAPES.get(source, ("hidden",))
    gamma = source.endswith("layer_norm_weight")
    return TensorRule(LAYERS + source, target, shape, split, Place.EVERY_LAYER, gamma)


def _model(
    embedding: str, layer: tuple[TensorRule, ...], norm: str, head: str
) -> tuple[TensorRule, ...]:
    """A decoder's rules, in the order of the data."""
    final = "model.decoder.final_layernorm."
    table, split, vector = ("vocab", "hidden"), Split.ROWS, ("hidden",)
    whole, last = Split.REPLICATED, Place.LAST
    return (
        TensorRule(EMBEDDING, embedding, table, split, Place.FIRST),
        *layer,
        TensorRule(final + "weight", norm + ".weight", vector, whole, last, is_gamma=True),
        TensorRule(final + "bias", norm + ".bias", vector, whole, last),
        TensorRule(HEAD, head, table, split, last),
    )


_TRT = "transformer.layers.{layer}."
TENSOR_MAP = _model(
    "transformer.vocab_embedding.weight",
    (
        _layer("self_attention.linear_qkv.layer_norm_weight", _TRT + "input_layernorm.weight"),
        _layer("self_attention.linear_qkv.layer_norm_bias", _TRT + "input_layernorm.bias"),
        _layer("self_attention.linear_qkv.weight", _TRT + "attention.qkv.weight", Split.QKV),
        _layer("self_attention.linear_proj.weight", _TRT + "attention.dense.weight", Split.COLUMNS),
        _layer("mlp.linear_fc1.layer_norm_weight", _TRT + "post_layernorm.weight"),
        _layer("mlp.linear_fc1.layer_norm_bias", _TRT + "post_layernorm.bias"),
        _layer("mlp.linear_fc1.weight", _TRT + "mlp.fc.weight", Split.ROWS),
        _layer("mlp.linear_fc2.weight", _TRT + "mlp.proj.weight", Split.COLUMNS),
    ),
    "transformer.ln_f",
    "lm_head.weight",
)
"""TensorRT-LLM's GPT; its norm weights are gamma."""

_HF = "model.layers.{layer}."
HF_MAP = _model(
    "model.embed_tokens.weight",
    (
        _layer("self_attention.linear_qkv.layer_norm_weight", _HF + "input_layernorm.weight"),
        _layer("self_attention.linear_qkv.layer_norm_bias", _HF + "input_layernorm.bias"),
        _layer("self_attention.linear_qkv.weight", _HF + "self_attn.q_proj.weight", Split.QUERIES),
        _layer("self_attention.linear_qkv.weight", _HF + "self_attn.k_proj.weight", Split.KEYS),
        _layer("self_attention.linear_qkv.weight", _HF + "self_attn.v_proj.weight", Split.VALUES),
        _layer("self_attention.linear_proj.weight", _HF + "self_attn.o_proj.weight"),
        _layer("mlp.linear_fc1.layer_norm_weight", _HF + "post_attention_layernorm.weight"),
        _layer("mlp.linear_fc1.layer_norm_bias", _HF + "post_attention_layernorm.bias"),
        _layer("mlp.linear_fc1.weight", _HF + "mlp.up_proj.weight"),
        _layer("mlp.linear_fc2.weight", _HF + "mlp.down_proj.weight"),
    ),
    "model.norm",
    "lm_head.weight",
)
"""transformers' NemotronForCausalLM; its norm weights are gamma - 1."""


LINEARS = {
    rule.source: rule.target.removeprefix(_TRT).removesuffix(".weight")
    for rule in TENSOR_MAP
    if rule.source.removeprefix(LAYERS) in _SHAPES
}
"""The matrices that FP8 is for, with TensorRT-LLM's short names for them."""


def in_order(rules: tuple[TensorRule, ...], num_layers: int) -> Iterator[tuple[TensorRule, int]]:
    """Every rule with every global layer it has, in the order in which data flows."""
    for rule in rules:
        if rule.place is Place.FIRST:
            yield rule, 0
    for layer in range(num_layers):
        for rule in rules:
            if rule.place is Place.EVERY_LAYER:
                yield rule, layer
    for rule in rules:
        if rule.place is Place.LAST:
            yield rule, 0


_HEAD_KINDS = {
    Split.QUERIES: HeadKind.QUERY,
    Split.KEYS: HeadKind.KEY,
    Split.VALUES: HeadKind.VALUE,
}


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
    heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_size
    if rule.split is Split.QKV:
        qkv = split_qkv(heads, kv_heads, size, columns, tp)
        rank_heads = heads // tp + 2 * max(1, kv_heads // tp)
        return RuleShape(rows, columns, (rank_heads * size, columns), tuple(qkv))
    kind = _HEAD_KINDS[rule.split]
    taken = (heads if kind is HeadKind.QUERY else kv_heads) * size
    blocks = tuple(take_heads(kind, heads, kv_heads, size, columns))
    return RuleShape(rows, columns, (taken, columns), blocks)


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
