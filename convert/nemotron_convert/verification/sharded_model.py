"""A checkpoint run as its GPUs would run it: each rank on its shards, sums across the ranks.

Every operation is done twice in one pass over the weights: freely, on what the ranks have computed
before, and on the reference's input, so that one wrong tensor does not hide behind another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemotron_convert.calibration.decoder import (
    Rotary,
    Trace,
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

BAND_ROWS_BYTES = 64 << 20
"""Of a weight in F32, widened at a time."""


@dataclass(frozen=True)
class Share:
    """What of a model's heads and rows a TP rank holds."""

    queries: slice
    groups: slice
    """KV heads."""
    columns: slice
    """Of the concatenated heads."""
    ffn: slice
    vocab: slice


@dataclass(frozen=True)
class Check:
    """One tensor of one rank at work on the reference's input."""

    rank: int
    tensor: str
    """Its name in that rank's file."""
    operation: str
    result: Tensor


class ShardedModel:
    """The ranks of this process, `rank % team.size` to each; the sums are everyone's."""

    def __init__(self, checkpoint: Checkpoint, team: Team, lengths: Sequence[int]) -> None:
        self._checkpoint, self._team, self._lengths = checkpoint, team, lengths
        self._model = checkpoint.config.model_shape()
        mapping = checkpoint.config.mapping
        self.parallel = Parallel(mapping.tp_size, mapping.pp_size)
        self._rotary = Rotary(
            self._model.head_size, self._model.rotary_pct, self._model.rotary_base, lengths
        )

    def share(self, tp_rank: int) -> Share:
        """By the rules of the splits."""
        tp, model = self.parallel.tp, self._model
        heads = model.num_heads // tp
        kv_heads = max(1, model.num_kv_heads // tp)
        group = tp_rank * heads // (model.num_heads // model.num_kv_heads)
        ffn = model.intermediate_size // tp
        rows = -(-self._checkpoint.config.vocab_size // tp)
        end = min((tp_rank + 1) * rows, self._checkpoint.config.vocab_size)
        return Share(
            queries=slice(tp_rank * heads, (tp_rank + 1) * heads),
            groups=slice(group, group + kv_heads),
            columns=slice(
                tp_rank * heads * model.head_size, (tp_rank + 1) * heads * model.head_size
            ),
            ffn=slice(tp_rank * ffn, (tp_rank + 1) * ffn),
            vocab=slice(min(tp_rank * rows, end), end),
        )

    def embed(self, ids: Tensor) -> tuple[Tensor, list[Check]]:
        """Hidden states [T, H] of token ids [T]."""
        name = "transformer.vocab_embedding.weight"
        total = torch.zeros(len(ids), self._model.hidden_size)
        checks = []
        for rank, tp_rank in self._ranks(0):
            vocab = self.share(tp_rank).vocab
            inside = (ids >= vocab.start) & (ids < vocab.stop)
            part = torch.zeros_like(total)
            table = self._checkpoint.read(rank, name)
            wanted = table[(ids[inside] - vocab.start).numpy()].view(np.uint16)
            part[inside] = from_words(wanted).float()
            total += part
            checks.append(Check(rank, name, "embedding", part))
        return self._sum(total), checks

    def layer(
        self, layer: int, free: Tensor, hidden: Tensor, trace: Trace
    ) -> tuple[Tensor, list[Check]]:
        """One layer on `free` [T, H], and on the `trace` that a reference has from `hidden`."""
        stage = next(
            stage
            for stage in range(self.parallel.pp)
            if layer in self.parallel.layers(stage, self._model.num_layers)
        )
        local = layer - self.parallel.layers(stage, self._model.num_layers).start
        prefix = f"transformer.layers.{local}."
        checks: list[Check] = []
        ranks = list(self._ranks(stage))
        total = torch.zeros_like(free)
        for rank, tp_rank in ranks:
            total += self._attention(rank, tp_rank, prefix, layer, (free, hidden), trace, checks)
        free = free + self._sum(total)
        total = torch.zeros_like(free)
        for rank, tp_rank in ranks:
            total += self._mlp(rank, tp_rank, prefix, free, trace, checks)
        return free + self._sum(total), checks

    def head(self, free: Tensor, hidden: Tensor) -> Iterator[tuple[int, Tensor, list[Check]]]:
        """For each of this process's last ranks: TP rank, its logits [T, its rows], checks."""
        for rank, tp_rank in self._ranks(self.parallel.pp - 1):
            normed, reference = (self._norm(rank, "transformer.ln_f", x) for x in (free, hidden))
            vocab = self.share(tp_rank).vocab
            both = self._linear(rank, "lm_head", torch.cat((normed, reference)))
            logits, checked = both[:, : vocab.stop - vocab.start].chunk(2)
            yield (
                tp_rank,
                logits,
                [
                    Check(rank, "transformer.ln_f.weight", "final norm", reference),
                    Check(rank, "lm_head.weight", "logits", checked),
                ],
            )

    def _attention(
        self,
        rank: int,
        tp_rank: int,
        prefix: str,
        layer: int,
        inputs: tuple[Tensor, Tensor],
        trace: Trace,
        checks: list[Check],
    ) -> Tensor:
        share, model = self.share(tp_rank), self._model
        free, normed = (self._norm(rank, prefix + "input_layernorm", x) for x in inputs)
        checks.append(Check(rank, prefix + "input_layernorm.weight", "norm", normed))
        qkv = self._linear(rank, prefix + "attention.qkv", torch.cat((free, trace.normed)))
        queries = share.queries.stop - share.queries.start
        groups = share.groups.stop - share.groups.start
        heads = qkv.reshape(len(qkv), -1, model.head_size)
        parts = heads.tensor_split((queries, queries + groups), dim=1)
        query, key, value = (part[: len(free)] for part in parts)
        for kind, part in zip("QKV", parts, strict=True):
            checks.append(Check(rank, prefix + "attention.qkv.weight", kind, part[len(free) :]))
        scale = model.head_size**-0.5
        if self._checkpoint.config.apply_query_key_layer_scaling:
            scale /= layer + 1
        attended, checked = (
            attend(self._rotary.turn(q), self._rotary.turn(k), v, self._lengths, scale)
            for q, k, v in (
                (query, key, value),
                (
                    trace.query[:, share.queries],
                    trace.key[:, share.groups],
                    trace.value[:, share.groups],
                ),
            )
        )
        checks.append(Check(rank, prefix + "attention", "attention", checked))
        both = torch.cat((attended, trace.attended[:, share.columns]))
        dense, checked = self._linear(rank, prefix + "attention.dense", both).chunk(2)
        checks.append(Check(rank, prefix + "attention.dense.weight", "attention.dense", checked))
        return dense

    def _mlp(
        self,
        rank: int,
        tp_rank: int,
        prefix: str,
        free: Tensor,
        trace: Trace,
        checks: list[Check],
    ) -> Tensor:
        share = self.share(tp_rank)
        name = prefix + "post_layernorm"
        free, normed = (self._norm(rank, name, x) for x in (free, trace.middle))
        checks.append(Check(rank, name + ".weight", "post norm", normed))
        both = torch.cat((free, trace.post_normed))
        wide, checked = self._linear(rank, prefix + "mlp.fc", both).chunk(2)
        checks.append(Check(rank, prefix + "mlp.fc.weight", "mlp.fc", checked))
        both = squared_relu(torch.cat((wide, trace.wide[:, share.ffn])))
        out, checked = self._linear(rank, prefix + "mlp.proj", both).chunk(2)
        checks.append(Check(rank, prefix + "mlp.proj.weight", "mlp.proj", checked))
        return out

    def _ranks(self, stage: int) -> Iterator[tuple[int, int]]:
        """(rank, TP rank) of a pipeline stage that are this process's."""
        for tp_rank in range(self.parallel.tp):
            rank = stage * self.parallel.tp + tp_rank
            if rank % self._team.size == self._team.rank:
                yield rank, tp_rank

    def _sum(self, part: Tensor) -> Tensor:
        return torch.from_numpy(self._team.sum(part.numpy()))

    def _norm(self, rank: int, name: str, hidden: Tensor) -> Tensor:
        weight, bias = (
            from_words(np.array(self._checkpoint.read(rank, f"{name}.{kind}")).view(np.uint16))
            for kind in ("weight", "bias")
        )
        return layer_norm(hidden, weight, bias, self._model.norm_eps)

    def _linear(self, rank: int, name: str, values: Tensor) -> Tensor:
        """Values [T, in] · the rank's weightᵀ, F32; FP8 as TensorRT-LLM's kernels compute it."""
        weight = self._checkpoint.read(rank, name + ".weight")
        out = torch.empty(len(values), len(weight))
        scale = 1.0
        if is_fp8 := weight.dtype.itemsize == 1:
            kinds = (ScaleKind.WEIGHT, ScaleKind.INPUT)
            names = [trtllm_scale_name(name + ".weight", kind) for kind in kinds]
            ofs = [float(self._checkpoint.read(rank, one)[0]) for one in names]
            values = (values / ofs[1]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()
            scale = ofs[0] * ofs[1]
        rows = max(1, BAND_ROWS_BYTES // (4 * weight.shape[1]))
        for first in range(0, len(weight), rows):
            words = np.array(weight[first : first + rows])
            band = (
                torch.from_numpy(words.view(np.uint8)).view(torch.float8_e4m3fn)
                if is_fp8
                else from_words(words.view(np.uint16))
            )
            out[:, first : first + rows] = values @ band.float().T
        return out * scale
