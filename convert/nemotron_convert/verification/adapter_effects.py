"""What adapters do to a layer's results, derived apart from the converter's own merge.

The converter changes weights; here the adapters act in the forward pass, as they did in training:
y = W x + scale · B (A x), and an IA3 multiplies x or y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_convert.calibration.layer_weights import LINEAR_SOURCES
from nemotron_convert.shards import HeadKind
from nemotron_convert.source.adapter import Adapter
from nemotron_convert.source.adapter_map import Axis
from nemotron_convert.source.prompt_table import PREFIX, TENSORS
from nemotron_convert.tensor_map import Place, TensorRule
from nemotron_core.model_config import ModelConfig


@dataclass(frozen=True)
class Effect:
    """y = rows · (W (columns · x)) + b (a x): all adapters of one matrix W [out, in] together."""

    rows: Tensor
    """[out]"""
    columns: Tensor
    """[in]"""
    a: Tensor
    """[R, in], with R the sum of all ranks."""
    b: Tensor
    """[out, R], with the scales."""

    @property
    def multiplies(self) -> bool:
        """Whether an IA3 is among them."""
        return bool((self.rows != 1).any() or (self.columns != 1).any())

    def merged(self, band: Tensor, top: int, left: int) -> Tensor:
        """Return the band of W [rows, columns] from (`top`, `left`) on, merged, in BF16."""
        rows, columns = slice(top, top + len(band)), slice(left, left + band.shape[1])
        scaled = self.rows[rows, None].double() * band.double() * self.columns[columns].double()
        product = self.b[rows].double() @ self.a[:, columns].double()
        return (scaled + product).float().to(torch.bfloat16)


def find_effect(
    adapters: Sequence[Adapter], name: str, layer: int, shape: Sequence[int]
) -> Effect | None:
    """Return what the adapters do, in order, to a layer's matrix; `shape` ends with [out, in].

    `name` is TensorRT-LLM's name of the linear layer. Returns `None` if no adapter changes it.
    """
    source = LINEAR_SOURCES[name]
    rows, columns = torch.ones(shape[-2]), torch.ones(shape[-1])
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    is_changed = False
    for adapter in adapters:
        scale = _scale(adapter)
        for part in adapter.lora_parts:
            if part.module.weight == source and layer in part.inputs:
                a, b = map(torch.from_numpy, part.factors(layer))
                inputs.append(a.clone())
                outputs.append(scale * _in_groups(b, part.module.heads, adapter.base, 0.0))
                is_changed = True
        for ia3 in adapter.ia3_parts:
            if ia3.module.weight != source or layer not in ia3.vectors:
                continue
            vector = torch.from_numpy(ia3.vectors[layer].read_numbers()).T
            is_changed = True
            if ia3.module.axis is Axis.ROWS:
                factors = _in_groups(vector, ia3.module.heads, adapter.base, 1.0)
                rows *= factors[:, 0]
                outputs = [factors * b for b in outputs]
            else:
                columns *= vector[:, 0]
                inputs = [a * vector[:, 0] for a in inputs]
    if not is_changed:
        return None
    none_in, none_out = torch.zeros(0, shape[-1]), torch.zeros(shape[-2], 0)
    return Effect(rows, columns, torch.cat([none_in, *inputs]), torch.cat([none_out, *outputs], 1))


def prompt_vectors(adapter: Adapter) -> Tensor:
    """Return the vectors [N, H] of a P-tuning in F32, computed from its MLP in F64."""
    embedding, *parameters = (
        torch.from_numpy(
            adapter.contents.tensors.open(
                TensorRule(PREFIX + name, "", shape, split, Place.FIRST)
            ).read_numbers()
        ).double()
        for name, (shape, split) in TENSORS.items()
    )
    first, first_bias, second, second_bias = parameters
    inner = torch.nn.functional.linear(embedding, first, first_bias)
    active = torch.nn.functional.gelu(inner, approximate="tanh")
    return torch.nn.functional.linear(active, second, second_bias).float()


def _scale(adapter: Adapter) -> float:
    """Return alpha / rank of a LoRA as its settings and its factors have them."""
    if adapter.lora is None or adapter.lora.alpha is None:
        return 1.0
    rank = next(iter(adapter.lora_parts[0].inputs.values())).shape[0]
    return adapter.lora.alpha / rank


def _in_groups(rows: Tensor, heads: HeadKind | None, config: ModelConfig, other: float) -> Tensor:
    """Return rows [n · D, C] of one kind of heads as rows of the groups (queries, key, value).

    The rows of other kinds are `other`. Without a kind, the rows stay as they are.
    """
    if heads is None:
        return rows
    groups, queries = config.num_kv_heads, config.num_heads // config.num_kv_heads
    grouped = torch.full((groups, queries + 2, config.head_size, rows.shape[1]), other)
    place = {
        HeadKind.QUERY: slice(0, queries),
        HeadKind.KEY: slice(queries, queries + 1),
        HeadKind.VALUE: slice(queries + 1, queries + 2),
    }[heads]
    grouped[:, place] = rows.view(groups, -1, config.head_size, rows.shape[1])
    return grouped.flatten(0, 2)
