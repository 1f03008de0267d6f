"""Nemotron-4 as an OpenVINO graph, built operation by operation from a checkpoint.

The graph that generates has the patterns that two libraries search for. openvino-genai turns it
into paged attention: this needs KV variables with certain names, grouped heads by broadcast, and
attention with an explicit mask. OpenVINO fuses the rotary embedding into one operation: this needs
the rotation written as `x · cos + [-x₂, x₁] · sin`, and the channels that are not rotated
concatenated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import ml_dtypes
import numpy as np

from nemotron_build.openvino_weights import table_node, weight_node
from nemotron_build.weights import Weights
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.fp8 import E4M3_MAX
from nemotron_convert.target.layout import Dtype, ScaleKind
from nemotron_core.model_config import ModelConfig
from nemotron_core.openvino import openvino, opset13

Node = Any
Precision = Literal["bf16", "f32"]
MASKED = np.float32(np.finfo(np.float32).min)


def build_model(checkpoint: Checkpoint, precision: Precision, weights: Weights = "bf16") -> Any:
    """Return an `openvino.Model` of a checkpoint.

    Inputs: input_ids, attention_mask and position_ids, [B, T] i64. Output: logits, [B, T, V] F32.

    BF16 weights stay BF16, or become INT8 or INT4 (`openvino_weights`); those of an FP8 checkpoint
    keep their own numbers. After the ids of the vocabulary come those of virtual tokens, whose
    vectors stay F32; logits are of the vocabulary only. `precision` is the type in which the
    plug-in will compute. With BF16 it also keeps the results of operations in BF16, except the
    angles of the rotary embedding. The scales of an FP8 checkpoint are applied to weights and
    inputs, but not to the KV cache, whose type the engine chooses.
    """
    return _TextGraph(checkpoint, precision, weights).model()


@dataclass
class DecoderGraph:
    """The decoder: hidden states from token ids. What is after it and the cache differ by kind."""

    checkpoint: Checkpoint
    precision: Precision
    weights: Weights = "bf16"

    def __post_init__(self) -> None:
        self.shape: ModelConfig = self.checkpoint.config.model_shape()

    def hidden_states(self, ids: Node, positions: Node) -> Node:
        """Return the input of the head, [B, T, hidden size], for ids and positions [B, T]."""
        self.batch = opset13.gather(opset13.shape_of(ids, "i64"), _i64([0]), _i64(0))
        self.cosines, self.sines = self._rotary_tables(positions)
        hidden = self._embed(ids)
        for layer in range(self.shape.num_layers):
            hidden = self._layer(hidden, layer)
        return self._norm(hidden, "transformer.ln_f")

    def _embed(self, ids: Node) -> Node:
        """Return the embeddings [B, T, hidden size]. The ids above the vocabulary are virtual."""
        name = "transformer.vocab_embedding.weight"
        table, vectors = self.checkpoint.tensor(name), self.checkpoint.virtual_tokens()
        if vectors is None:
            return table_node(name, table, self.weights, ids)
        size = _i64(len(table))
        words = table_node(name, table, self.weights, opset13.minimum(ids, _i64(len(table) - 1)))
        rows = opset13.maximum(opset13.subtract(ids, size), _i64(0))
        virtual = opset13.gather(opset13.constant(vectors), rows, _i64(0))
        is_virtual = opset13.unsqueeze(opset13.greater_equal(ids, size), _i64([-1]))
        return opset13.select(is_virtual, virtual, words)

    def _attend(self, query: Node, key: Node, value: Node, layer: int) -> Node:
        """Return what each query attends to, [B, heads, T, size]."""
        raise NotImplementedError

    def _layer(self, hidden: Node, layer: int) -> Node:
        prefix = f"transformer.layers.{layer}."
        normed = self._norm(hidden, prefix + "input_layernorm")
        hidden = opset13.add(hidden, self._attention(normed, prefix + "attention.", layer))
        normed = self._norm(hidden, prefix + "post_layernorm")
        wide = opset13.relu(self._linear(normed, prefix + "mlp.fc"))
        squared = opset13.power(wide, _f32(2.0))
        return opset13.add(hidden, self._linear(squared, prefix + "mlp.proj"))

    def _attention(self, normed: Node, prefix: str, layer: int) -> Node:
        heads, groups, size = self.shape.num_heads, self.shape.num_kv_heads, self.shape.head_size
        qkv = self._linear(normed, prefix + "qkv")
        query, key, value = _split(qkv, 2, [heads * size, groups * size, groups * size])
        query = self._rotate(_to_heads(query, heads, size))
        key = self._rotate(_to_heads(key, groups, size))
        value = _to_heads(value, groups, size)
        attended = self._attend(query, key, value, layer)
        together = opset13.transpose(attended, _i64([0, 2, 1, 3]))
        flat = opset13.reshape(together, _i64([0, 0, heads * size]), special_zero=True)
        return self._linear(flat, prefix + "dense")

    def _for_every_head(self, kv: Node) -> Node:
        """Repeat each group for its query heads: [B, groups, T, size] → [B, heads, T, size]."""
        heads, groups, size = self.shape.num_heads, self.shape.num_kv_heads, self.shape.head_size
        repeats = heads // groups
        if repeats == 1:
            return kv
        target = opset13.concat(
            [self.batch, _i64([groups]), _i64([repeats]), _i64([1]), _i64([size])], 0
        )
        repeated = opset13.broadcast(
            opset13.unsqueeze(kv, _i64([2])), target, broadcast_spec="BIDIRECTIONAL"
        )
        return opset13.reshape(repeated, _i64([0, heads, -1, size]), special_zero=True)

    def _rotary_tables(self, positions: Node) -> tuple[Node, Node]:
        """Return cos and sin [B, 1, T, width] of position · base^(-2i / width), for both halves."""
        width = int(self.shape.head_size * self.shape.rotary_pct)
        steps = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        frequencies = (1.0 / np.float32(self.shape.rotary_base) ** steps).astype(np.float32)
        table = opset13.constant(np.tile(frequencies, 2).reshape(1, 1, 1, -1))
        angles = opset13.multiply(
            opset13.unsqueeze(opset13.convert(positions, "f32"), _i64([1, 3])), table
        )
        return opset13.cos(angles), opset13.sin(angles)

    def _rotate(self, heads: Node) -> Node:
        """Rotate the first `width` channels of each head by NeoX's halves, and keep the others.

        The pattern is one that the plug-in fuses into one operation. Only then does it keep the
        angles in F32. In BF16, neighbouring positions above 256 would have equal angles.
        """
        width = int(self.shape.head_size * self.shape.rotary_pct)
        if width < self.shape.head_size:
            rotary, plain = _split(heads, 3, [width, self.shape.head_size - width])
            return opset13.concat([self._rotate_halves(rotary, width // 2), plain], -1)
        return self._rotate_halves(heads, width // 2)

    def _rotate_halves(self, rotary: Node, half: int) -> Node:
        first, second = _split(rotary, 3, [half, half])
        across = opset13.concat([opset13.multiply(second, _f32(-1.0)), first], -1)
        return opset13.add(
            opset13.multiply(rotary, self.cosines), opset13.multiply(across, self.sines)
        )

    def _norm(self, hidden: Node, name: str) -> Node:
        """Apply LayerNorm. The checkpoint's weight is LayerNorm1P's gamma + 1."""
        normed = opset13.mvn(hidden, _i64([-1]), True, self.shape.norm_eps, "inside_sqrt")
        weight, bias = (
            opset13.constant(self.checkpoint.tensor(f"{name}.{part}").astype(np.float32))
            for part in ("weight", "bias")
        )
        return opset13.add(opset13.multiply(normed, weight), bias)

    def _linear(self, hidden: Node, name: str) -> Node:
        if self.checkpoint.precision.weights is Dtype.FP8:
            return self._fp8_linear(hidden, name)
        return self._product(hidden, name + ".weight")

    def _fp8_linear(self, hidden: Node, name: str) -> Node:
        """Return the product of the E4M3 weight and the input rounded to E4M3, scaled back.

        The plug-in computes nothing in 8 bits, so the E4M3 values have the type BF16, which
        represents each of them exactly. Without the clamp, too large values would become NaN.
        """
        stored = name + ".weight"
        weight = self.checkpoint.tensor(stored)
        weight_scale, input_scale = (
            self.checkpoint.scale(stored, kind) for kind in (ScaleKind.WEIGHT, ScaleKind.INPUT)
        )
        scaled = opset13.multiply(hidden, _f32(1 / input_scale))
        rounded = opset13.convert(opset13.clamp(scaled, -E4M3_MAX, E4M3_MAX), "f8e4m3")
        wide = weight_node(stored, weight.astype(ml_dtypes.bfloat16), "bf16", marked=self._marked)
        product = opset13.matmul(opset13.convert(rounded, "f32"), wide, False, True)
        return opset13.multiply(product, _f32(weight_scale * input_scale))

    def _product(self, hidden: Node, name: str) -> Node:
        """Return hidden · weightᵀ, computed in the plug-in's precision."""
        matrix = self.checkpoint.tensor(name)
        wide = weight_node(name, matrix, self.weights, marked=self._marked)
        return opset13.matmul(hidden, wide, False, True)

    @property
    def _marked(self) -> bool:
        return self.precision == "bf16"


@dataclass
class _TextGraph(DecoderGraph):
    sinks: list[Node] = field(default_factory=list)
    variables: list[Any] = field(default_factory=list)

    def model(self) -> Any:
        ids, attention_mask, positions = (
            parameter(name, [-1, -1], openvino.Type.i64)
            for name in ("input_ids", "attention_mask", "position_ids")
        )
        self.beam = parameter("beam_idx", [-1], openvino.Type.i32)
        self.mask = _causal_mask(ids, attention_mask)
        logits = opset13.result(self._head(self.hidden_states(ids, positions)))
        logits.output(0).set_names({"logits"})
        model = openvino.Model(
            [logits],
            self.sinks,
            [ids, attention_mask, positions, self.beam],
            self.variables,
            "nemotron",
        )
        model.validate_nodes_and_infer_types()
        return model

    def _attend(self, query: Node, key: Node, value: Node, layer: int) -> Node:
        key = self._cached(key, f"past_key_values.{layer}.keypresent.{layer}.key")
        value = self._cached(value, f"past_key_values.{layer}.valuepresent.{layer}.value")
        return opset13.scaled_dot_product_attention(
            query, self._for_every_head(key), self._for_every_head(value), self.mask, causal=False
        )

    def _cached(self, new: Node, name: str) -> Node:
        """Append `new` [B, groups, T, size] to the cached keys or values, and return them all."""
        groups, size = self.shape.num_kv_heads, self.shape.head_size
        info = openvino.op.util.VariableInfo()
        info.data_shape = openvino.PartialShape([-1, groups, -1, size])
        info.data_type = openvino.Type.f32
        info.variable_id = name
        variable = openvino.op.util.Variable(info)
        empty_shape = opset13.concat([self.batch, _i64([groups]), _i64([0]), _i64([size])], 0)
        empty = opset13.broadcast(_f32(0.0), empty_shape)
        past = opset13.gather(opset13.read_value(empty, variable), self.beam, _i64(0))
        cached = opset13.concat([past, new], 2)
        self.variables.append(variable)
        self.sinks.append(opset13.assign(cached, variable))
        return cached

    def _head(self, hidden: Node) -> Node:
        """Return the logits, F32.

        This must be the last node: then OpenVINO GenAI computes logits only for the tokens after
        which it samples, which is one token of a prompt.
        """
        return self._product(hidden, "lm_head.weight")


def parameter(name: str, shape: list[int], dtype: Any) -> Node:
    parameter = opset13.parameter(openvino.PartialShape(shape), dtype)
    parameter.set_friendly_name(name)
    parameter.output(0).set_names({name})
    return parameter


def _causal_mask(ids: Node, attention_mask: Node) -> Node:
    """Return the mask [B, 1, T, past + T] F32: 0 to attend, the lowest number not to attend."""
    length = opset13.gather(opset13.shape_of(ids, "i64"), _i64(1), _i64(0))
    total = opset13.gather(opset13.shape_of(attention_mask, "i64"), _i64(1), _i64(0))
    columns = opset13.range(_i64(0), total, _i64(1), "i64")
    rows = opset13.range(opset13.subtract(total, length), total, _i64(1), "i64")
    later = opset13.greater(
        opset13.unsqueeze(columns, _i64([0])), opset13.unsqueeze(rows, _i64([1]))
    )
    padding = opset13.equal(opset13.unsqueeze(attention_mask, _i64([1, 2])), _i64(0))
    hidden = opset13.logical_or(opset13.unsqueeze(later, _i64([0, 1])), padding)
    return opset13.select(hidden, opset13.constant(MASKED), _f32(0.0))


def _split(node: Node, axis: int, widths: list[int]) -> list[Node]:
    return list(opset13.variadic_split(node, _i64(axis), _i64(widths)).outputs())


def _to_heads(flat: Node, heads: int, size: int) -> Node:
    """Split the heads: [B, T, heads · size] → [B, heads, T, size]."""
    split = opset13.reshape(flat, _i64([0, 0, heads, size]), special_zero=True)
    return opset13.transpose(split, _i64([0, 2, 1, 3]))


def _i64(value: int | list[int]) -> Node:
    return opset13.constant(np.array(value, np.int64))


def _f32(value: float) -> Node:
    return opset13.constant(np.float32(value))
