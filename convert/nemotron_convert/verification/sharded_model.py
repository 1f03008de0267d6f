"""A checkpoint computed as its GPUs would: each rank on its shards, with sums across the ranks.

Every operation is computed twice in one pass over the weights: on what the ranks computed before
(the sharded run), and on the reference's input (a check), so that one wrong tensor does not hide
another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemotron_convert.calibration.decoder import (
    LayerTrace,
    RotaryEmbedding,
    attend,
    from_words,
    layer_norm,
    squared_relu,
)
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.fp8 import E4M3_MAX
from nemotron_convert.target.layout import ScaleKind, trtllm_scale_name
from nemotron_convert.team import Team

BAND_BYTES = 64 << 20
"""Bytes of a weight in F32 that are multiplied at a time."""


@dataclass(frozen=True)
class RankSlices:
    """The slices of a model's heads and rows that a TP rank holds."""

    queries: slice
    """Query heads."""
    groups: slice
    """KV heads."""
    columns: slice
    """Columns of the concatenated query heads."""
    ffn: slice
    """Rows of `mlp.fc`."""
    vocab: slice
    """Rows of the embedding and of the output layer."""


@dataclass(frozen=True)
class Check:
    """Result of one operation of one rank on the reference's input."""

    rank: int
    tensor: str
    """Name of the operation's tensor in that rank's file."""
    operation: str
    """One of `verifier.OPERATIONS`."""
    result: Tensor


class ShardedModel:
    """The checkpoint's ranks, divided over the processes: rank % team.size is the process.

    Sums run over the ranks of all processes. Shapes use T tokens of all sequences, laid end to end,
    and the hidden size H. Everything is F32.
    """

    def __init__(self, checkpoint: Checkpoint, team: Team, lengths: Sequence[int]) -> None:
        self._checkpoint, self._team, self._lengths = checkpoint, team, lengths
        self._model = checkpoint.config.model_shape()
        mapping = checkpoint.config.mapping
        self.parallel = Parallel(mapping.tp_size, mapping.pp_size)
        self._rotary = RotaryEmbedding(self._model, lengths)

    def slices(self, rank: int) -> RankSlices:
        """Return the slices of a rank, which only its TP rank decides."""
        tp, model = self.parallel.tp, self._model
        tp_rank = rank % tp
        heads = model.num_heads // tp
        kv_heads = max(1, model.num_kv_heads // tp)
        group = tp_rank * heads // (model.num_heads // model.num_kv_heads)
        ffn = model.intermediate_size // tp
        vocab_size = self._checkpoint.config.vocab_size
        rows = -(-vocab_size // tp)
        end = min((tp_rank + 1) * rows, vocab_size)
        columns = heads * model.head_size
        return RankSlices(
            queries=slice(tp_rank * heads, (tp_rank + 1) * heads),
            groups=slice(group, group + kv_heads),
            columns=slice(tp_rank * columns, (tp_rank + 1) * columns),
            ffn=slice(tp_rank * ffn, (tp_rank + 1) * ffn),
            vocab=slice(min(tp_rank * rows, end), end),
        )

    def locate(self, layer: int) -> tuple[int, int]:
        """Return a layer's pipeline stage and its number there."""
        for stage in range(self.parallel.pp):
            layers = self.parallel.layers(stage, self._model.num_layers)
            if layer in layers:
                return stage, layer - layers.start
        raise IndexError(layer)

    def embed(self, ids: Tensor) -> tuple[Tensor, list[Check]]:
        """Return the embeddings [T, H] of token ids [T]; those above the vocabulary are virtual."""
        name = "transformer.vocab_embedding.weight"
        total = torch.zeros(len(ids), self._model.hidden_size)
        checks = []
        for rank in self._ranks(0):
            vocab = self.slices(rank).vocab
            is_held = (ids >= vocab.start) & (ids < vocab.stop)
            part = torch.zeros_like(total)
            rows = self._checkpoint.read(rank, name)[(ids[is_held] - vocab.start).numpy()]
            part[is_held] = from_words(rows.view(np.uint16)).float()
            total += part
            checks.append(Check(rank, name, "embedding", part))
        total = self._sum(total)
        if (vectors := self._checkpoint.virtual_tokens()) is not None:
            is_virtual = ids >= self._checkpoint.config.vocab_size
            rows = (ids[is_virtual] - self._checkpoint.config.vocab_size).clamp(
                max=len(vectors) - 1
            )
            total[is_virtual] = torch.from_numpy(vectors)[rows]
        return total, checks

    def layer(
        self, layer: int, hidden: Tensor, reference: Tensor, trace: LayerTrace
    ) -> tuple[Tensor, list[Check]]:
        """Compute one layer on the sharded run's hidden [T, H], and check it on the reference.

        `reference` [T, H] is the layer's input in the reference, `trace` what it computed from it.
        Returns the sharded run's hidden states [T, H] and the checks of this process's ranks.
        """
        stage, local_layer = self.locate(layer)
        prefix = f"transformer.layers.{local_layer}."
        checks: list[Check] = []
        scale = self._model.head_size**-0.5
        if self._checkpoint.config.apply_query_key_layer_scaling:
            scale /= layer + 1
        total = torch.zeros_like(hidden)
        for rank in self._ranks(stage):
            total += self._attention(rank, prefix, scale, (hidden, reference), trace, checks)
        hidden = hidden + self._sum(total)
        total = torch.zeros_like(hidden)
        for rank in self._ranks(stage):
            total += self._mlp(rank, prefix, hidden, trace, checks)
        return hidden + self._sum(total), checks

    def head(self, hidden: Tensor, reference: Tensor) -> Iterator[tuple[int, Tensor, list[Check]]]:
        """Yield (TP rank, logits [T, its vocabulary rows], checks) of this process's last ranks."""
        for rank in self._ranks(self.parallel.pp - 1):
            normed, checked_norm = (
                self._norm(rank, "transformer.ln_f", values) for values in (hidden, reference)
            )
            slices = self.slices(rank)
            rows = slices.vocab.stop - slices.vocab.start  # without the padding
            stacked = self._linear(rank, "lm_head", torch.cat((normed, checked_norm)))
            logits, checked_logits = stacked[:, :rows].chunk(2)
            checks = [
                Check(rank, "transformer.ln_f.weight", "final norm", checked_norm),
                Check(rank, "lm_head.weight", "logits", checked_logits),
            ]
            yield rank % self.parallel.tp, logits, checks

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return the input of the last stage's head, [T, H], for the last layer's hidden [T, H]."""
        return self._norm((self.parallel.pp - 1) * self.parallel.tp, "transformer.ln_f", hidden)

    def _attention(
        self,
        rank: int,
        prefix: str,
        scale: float,
        inputs: tuple[Tensor, Tensor],
        trace: LayerTrace,
        checks: list[Check],
    ) -> Tensor:
        """Return the rank's part of the attention's output; `inputs` are (sharded, reference)."""
        slices = self.slices(rank)
        normed, checked = (self._norm(rank, prefix + "input_layernorm", x) for x in inputs)
        checks.append(Check(rank, prefix + "input_layernorm.weight", "norm", checked))
        qkv = self._linear(rank, prefix + "attention.qkv", torch.cat((normed, trace.normed)))
        queries = slices.queries.stop - slices.queries.start
        groups = slices.groups.stop - slices.groups.start
        heads = qkv.reshape(len(qkv), -1, self._model.head_size)
        parts = heads.tensor_split((queries, queries + groups), dim=1)
        tokens = len(normed)
        for operation, part in zip("QKV", parts, strict=True):
            checks.append(Check(rank, prefix + "attention.qkv.weight", operation, part[tokens:]))
        query, key, value = (part[:tokens] for part in parts)
        attended, checked = (
            attend(self._rotary.rotate(q), self._rotary.rotate(k), v, self._lengths, scale)
            for q, k, v in (
                (query, key, value),
                (
                    trace.query[:, slices.queries],
                    trace.key[:, slices.groups],
                    trace.value[:, slices.groups],
                ),
            )
        )
        checks.append(Check(rank, prefix + "attention", "attention", checked))
        stacked = torch.cat((attended, trace.attended[:, slices.columns]))
        dense, checked = self._linear(rank, prefix + "attention.dense", stacked).chunk(2)
        checks.append(Check(rank, prefix + "attention.dense.weight", "attention.dense", checked))
        return dense

    def _mlp(
        self, rank: int, prefix: str, hidden: Tensor, trace: LayerTrace, checks: list[Check]
    ) -> Tensor:
        """Return the rank's part of the MLP's output."""
        name = prefix + "post_layernorm"
        normed, checked = (self._norm(rank, name, values) for values in (hidden, trace.middle))
        checks.append(Check(rank, name + ".weight", "post norm", checked))
        stacked = torch.cat((normed, trace.post_normed))
        wide, checked = self._linear(rank, prefix + "mlp.fc", stacked).chunk(2)
        checks.append(Check(rank, prefix + "mlp.fc.weight", "mlp.fc", checked))
        stacked = squared_relu(torch.cat((wide, trace.wide[:, self.slices(rank).ffn])))
        out, checked = self._linear(rank, prefix + "mlp.proj", stacked).chunk(2)
        checks.append(Check(rank, prefix + "mlp.proj.weight", "mlp.proj", checked))
        return out

    def _ranks(self, stage: int) -> Iterator[int]:
        """Yield this process's ranks of a pipeline stage."""
        for rank in range(stage * self.parallel.tp, (stage + 1) * self.parallel.tp):
            if rank % self._team.size == self._team.rank:
                yield rank

    def _sum(self, part: Tensor) -> Tensor:
        return torch.from_numpy(self._team.sum(part.numpy()))

    def _norm(self, rank: int, name: str, hidden: Tensor) -> Tensor:
        weight, bias = (
            torch.from_numpy(self._checkpoint.read(rank, f"{name}.{part}").astype(np.float32))
            for part in ("weight", "bias")
        )
        return layer_norm(hidden, weight, bias, self._model.norm_eps)

    def _linear(self, rank: int, name: str, values: Tensor) -> Tensor:
        """Return values [T, in] · the rank's weightᵀ as [T, out] in F32.

        With FP8 weights, values are rounded to E4M3 first, as TensorRT-LLM's kernels do.
        """
        weight = self._checkpoint.read(rank, name + ".weight")
        out = torch.empty(len(values), len(weight))
        scale = 1.0
        if is_fp8 := weight.dtype.itemsize == 1:
            weight_scale, input_scale = (
                float(self._checkpoint.read(rank, trtllm_scale_name(name + ".weight", kind))[0])
                for kind in (ScaleKind.WEIGHT, ScaleKind.INPUT)
            )
            values = (values / input_scale).clamp(-E4M3_MAX, E4M3_MAX)
            values = values.to(torch.float8_e4m3fn).float()
            scale = weight_scale * input_scale
        rows = max(1, BAND_BYTES // (4 * weight.shape[1]))
        for first in range(0, len(weight), rows):
            words = np.array(weight[first : first + rows])
            band = (
                torch.from_numpy(words.view(np.uint8)).view(torch.float8_e4m3fn)
                if is_fp8
                else from_words(words.view(np.uint16))
            )
            out[:, first : first + rows] = values @ band.float().T
        return out * scale
