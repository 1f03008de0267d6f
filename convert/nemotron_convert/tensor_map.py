"""The map from Megatron's tensors to those of TensorRT-LLM and of Hugging Face, as data."""

from __future__ import annotations

import re
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
    """The rule that splits a tensor over the TP ranks, or the heads that are taken from it."""

    REPLICATED = "replicated"
    ROWS = "rows"
    COLUMNS = "columns"
    QKV = "qkv"
    QUERIES = "queries"
    KEYS = "keys"
    VALUES = "values"


class Place(Enum):
    """The pipeline stages that hold a tensor."""

    FIRST = "first stage"
    EVERY_LAYER = "the layer's stage"
    LAST = "last stage"


@dataclass(frozen=True)
class TensorRule:
    """One row of the map: a source tensor and a tensor that is made from it."""

    source: str
    """Megatron's name of the tensor, without a layer's number."""
    target: str
    """Name of the new tensor; `{layer}` stands for the layer, counted from 0 on its stage."""
    shape: tuple[str, ...]
    """Names of the source's sizes: (rows, columns) of a matrix or (columns,) of a vector."""
    split: Split
    place: Place
    is_gamma: bool = False
    """Whether this is a norm's weight, which some formats store as gamma and some as gamma - 1."""

    @property
    def stacked(self) -> bool:
        """Whether axis 0 of the source tensor counts layers."""
        return self.place is Place.EVERY_LAYER


Rules = tuple[TensorRule, ...]
PREFIX = "model."
"""Beginning of the names of all tensors."""
BARE = ("decoder.", "embedding.", "output_layer.")
"""Beginnings of names that Megatron-LM stores without a prefix."""
LAYERS = "model.decoder.layers."
"""Beginning of the names of the tensors that every decoder layer has."""
LAYER_NAME = re.compile(re.escape(LAYERS) + r"(\d{1,9})\.(.+)")
"""Name of a tensor that belongs to one layer only, as (layer, rest)."""
EMBEDDING = "model.embedding.word_embeddings.weight"
HEAD = "model.output_layer.weight"
_MATRIX_SHAPES = {
    "self_attention.linear_qkv.weight": ("qkv", "hidden"),
    "self_attention.linear_proj.weight": ("hidden", "heads"),
    "mlp.linear_fc1.weight": ("ffn", "hidden"),
    "mlp.linear_fc2.weight": ("hidden", "ffn"),
}


def _layer(source: str, target: str, split: Split = Split.REPLICATED) -> TensorRule:
    """Return the rule of a tensor that every layer has."""
    shape = _MATRIX_SHAPES.get(source, ("hidden",))
    is_gamma = source.endswith("layer_norm_weight")
    return TensorRule(LAYERS + source, target, shape, split, Place.EVERY_LAYER, is_gamma)


def _model(embedding: str, layer: Rules, norm: str, head: str) -> Rules:
    """Return a decoder's rules in the order in which data flows through them."""
    prefix = "model.decoder.final_layernorm."
    matrix, vector = ("vocab", "hidden"), ("hidden",)
    rows, replicated, last = Split.ROWS, Split.REPLICATED, Place.LAST
    return (
        TensorRule(EMBEDDING, embedding, matrix, rows, Place.FIRST),
        *layer,
        TensorRule(prefix + "weight", norm + ".weight", vector, replicated, last, is_gamma=True),
        TensorRule(prefix + "bias", norm + ".bias", vector, replicated, last),
        TensorRule(HEAD, head, matrix, rows, last),
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
"""The tensors of TensorRT-LLM's GPT, which stores norm weights as gamma."""

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
"""The tensors of transformers' `NemotronForCausalLM`, which stores norm weights as gamma - 1."""


DROPPED = {
    "*_extra_state*": "scales of Transformer Engine's FP8 training",
    "*rotary_pos_emb.inv_freq": "angles of the rotary embedding, which follow from the settings",
    "*rotary_emb.inv_freq": "angles of the rotary embedding, which follow from the settings",
    "optimizer*": "state of the optimizer",
    "optim.*": "state of the optimizer",
    "opt_param_scheduler*": "state of the learning rate",
    "lr_schedulers*": "state of the learning rate",
    "rng_state*": "state of the random generators",
    "rerun_state_machine_state*": "state of the training loop",
    "loops*": "state of the training loop",
    "callbacks*": "state of the training loop",
}
"""Patterns of the names of stored tensors that are dropped on purpose, with what they are."""


def canonical_name(name: str) -> str:
    """Return the name under which the tables have a stored tensor.

    NeMo 2 and models wrapped for mixed precision have other beginnings.

    >>> canonical_name("module.output_layer.weight")
    'model.output_layer.weight'
    >>> canonical_name("model.module.output_layer.weight")
    'model.output_layer.weight'
    """
    for prefix in ("module.", "model.module."):
        if name.startswith(prefix):
            return PREFIX + name.removeprefix(prefix)
    return PREFIX + name if name.startswith(BARE) else name


LINEARS = {
    rule.source: rule.target.removeprefix(_TRT).removesuffix(".weight")
    for rule in TENSOR_MAP
    if rule.source.removeprefix(LAYERS) in _MATRIX_SHAPES
}
"""The linear layers' weights, which FP8 quantizes, with TensorRT-LLM's short names for them."""


def in_data_order(rules: Rules, num_layers: int) -> Iterator[tuple[TensorRule, int]]:
    """Yield every rule with every global layer that has it, in the order in which data flows.

    The layer of a tensor outside the layers is 0.
    """
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
    """A rule applied to one model's sizes and one TP."""

    rows: int
    """Rows of the source matrix of one layer; a vector is one row."""
    columns: int
    rank_shape: tuple[int, ...]
    """Shape of the tensor on each rank."""
    blocks: tuple[Block, ...]
    """Blocks of the source matrix, of all ranks."""


def rule_shape(rule: TensorRule, config: ModelConfig, vocab_size: int, tp: int) -> RuleShape:
    """Return the sizes and blocks of a rule."""
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
        rank_shape = (-(-rows // tp), columns)
        return RuleShape(rows, columns, rank_shape, tuple(split_rows(rows, columns, tp)))
    if rule.split is Split.COLUMNS:
        blocks = tuple(split_columns(rows, columns, tp))
        return RuleShape(rows, columns, (rows, columns // tp), blocks)
    heads, kv_heads, head_size = config.num_heads, config.num_kv_heads, config.head_size
    if rule.split is Split.QKV:
        blocks = tuple(split_qkv(heads, kv_heads, head_size, columns, tp))
        rank_heads = heads // tp + 2 * max(1, kv_heads // tp)
        return RuleShape(rows, columns, (rank_heads * head_size, columns), blocks)
    kind = _HEAD_KINDS[rule.split]
    rank_heads = heads if kind is HeadKind.QUERY else kv_heads
    blocks = tuple(take_heads(kind, heads, kv_heads, head_size, columns))
    return RuleShape(rows, columns, (rank_heads * head_size, columns), blocks)


def placements(
    rule: TensorRule, parallel: Parallel, num_layers: int
) -> Iterator[tuple[int, int, str]]:
    """Yield (stage, global layer, target name on that stage) for each layer that has the tensor."""
    if rule.place is Place.FIRST:
        yield 0, 0, rule.target
    elif rule.place is Place.LAST:
        yield parallel.pp - 1, 0, rule.target
    else:
        for stage in range(parallel.pp):
            for local_layer, layer in enumerate(parallel.layers(stage, num_layers)):
                yield stage, layer, rule.target.format(layer=local_layer)
