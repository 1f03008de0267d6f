"""Is a checkpoint right? It is run, rank by rank, beside the source it was made from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nemotron_convert.calibration.data import CalibrationData, read_ids, read_texts
from nemotron_convert.calibration.decoder import Trace
from nemotron_convert.shards import Parallel
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.fp8 import scale_of
from nemotron_convert.target.layout import Dtype, ScaleKind, trtllm_scale_name
from nemotron_convert.team import ALONE, Team
from nemotron_convert.tensor_map import LINEARS
from nemotron_convert.verification.diagnosis import (
    Diagnosis,
    check_sizes,
    config_faults,
    relative_error,
)
from nemotron_convert.verification.reference_model import ReferenceModel, StreamedLayer
from nemotron_convert.verification.report import Fault, LayerReport, Verification
from nemotron_convert.verification.sharded_model import Check, ShardedModel
from nemotron_core.progress import byte_progress

TOLERANCES = {Dtype.BF16: 0.005, Dtype.FP8: 0.08}
"""Of one operation's relative error. BF16 checkpoints hold the source's own numbers, so only the
order of F32 sums differs. E4M3's three bits of mantissa make 2.6 % on average of the weights and as
much of the inputs, together 3.7 %, and twice that is still right."""
EXACT_INPUT = frozenset({"embedding", "norm", "post norm", "final norm", "attention", "logits"})
"""Operations whose weights are BF16 in FP8 checkpoints, too."""
SEQUENCES = 4
LENGTH = 48


def verify(
    checkpoint_path: Path, source_path: Path, *, ids: Path | None = None, team: Team = ALONE
) -> Verification:
    """Run the checkpoint on some tokens, on every process of the team, beside its source.

    Memory is a few bands of the weights and the intermediate results of the tokens.
    NemotronError if either cannot be read, or they are not even of the same shape.
    """
    with Source.open(source_path) as source:
        checkpoint = Checkpoint.open(checkpoint_path)
        data = read_ids(ids, source) if ids else _own_data(source)
        return _Verifying(source, checkpoint, data, team).run()


def _own_data(source: Source) -> CalibrationData:
    """The beginnings of the project's first texts."""
    data = read_texts(None, source, LENGTH)
    return CalibrationData(data.name, data.sequences[:SEQUENCES])


class _Verifying:
    def __init__(
        self, source: Source, checkpoint: Checkpoint, data: CalibrationData, team: Team
    ) -> None:
        self._source, self._checkpoint, self._team = source, checkpoint, team
        self._ids = torch.tensor(list(itertools.chain.from_iterable(data.sequences)))
        lengths = [len(row) for row in data.sequences]
        mapping = checkpoint.config.mapping
        self._parallel = Parallel(mapping.tp_size, mapping.pp_size)
        check_sizes(source, checkpoint)
        self._faults = list(config_faults(source, checkpoint))
        self._sharded = ShardedModel(checkpoint, team, lengths)
        self._diagnosis = Diagnosis(source, checkpoint, self._sharded)
        self._reference = ReferenceModel(source, self._parallel.tp, lengths)
        precision = checkpoint.precision.weights
        self._tolerances = (TOLERANCES[Dtype.BF16], TOLERANCES[precision])

    def run(self) -> Verification:
        total = self._source.config.num_layers * self._layer_bytes
        with (
            torch.inference_mode(),
            byte_progress("verifying", total, shown=self._team.is_leader) as report,
        ):
            return self._run(report)

    def _run(self, report: Callable[[int], None]) -> Verification:
        hidden = self._lead(lambda: self._reference.embed(self._ids))
        free, checks = self._sharded.embed(self._ids)
        self._compare(-1, checks, partial(self._embedding, hidden))
        layers = []
        for layer in range(self._source.config.num_layers):
            found = self._reference.layer(layer, hidden) if self._team.is_leader else None
            trace, weights = self._team.broadcast(found and (found[0], _Used(found[1])))
            free, checks = self._sharded.layer(layer, free, hidden, trace)
            worst = self._compare(layer, checks, partial(self._expected, trace, weights))
            self._check_scales(layer, weights)
            hidden = trace.hidden
            layers.append(LayerReport(layer, relative_error(free, hidden), *worst))
            report(self._layer_bytes)
        logits, top1 = self._head(free, hidden)
        return Verification(
            dtype=self._checkpoint.precision.weights.value,
            tp=self._parallel.tp,
            pp=self._parallel.pp,
            tokens=len(self._ids),
            layers=layers,
            logits=logits,
            top1=top1,
            faults=self._faults,
        )

    @property
    def _layer_bytes(self) -> int:
        return sum(self._source.tensors[name].layer_bytes for name in LINEARS)

    def _lead(self, compute: Callable[[], Tensor]) -> Tensor:
        return self._team.broadcast(compute() if self._team.is_leader else None)

    def _compare(
        self, layer: int, checks: list[Check], expected: Callable[[Check], Tensor]
    ) -> tuple[float, str]:
        """Note what is wrong on any process; the worst error and its tensor."""
        found = []
        for check in checks:
            wanted = expected(check)
            error = relative_error(check.result, wanted)
            limit = self._tolerances[check.operation not in EXACT_INPUT]
            hint = "" if error <= limit else self._diagnosis.hint(layer, check, expected, limit)
            found.append((_order(check), error, limit, self._name(layer, check), hint))
        everyone = sorted(itertools.chain.from_iterable(self._team.gather(found)))
        self._faults += [
            Fault(name, error, hint) for _, error, limit, name, hint in everyone if error > limit
        ]
        worst = max(everyone, key=lambda one: one[1])
        return worst[1], worst[3]

    def _name(self, layer: int, check: Check) -> str:
        part = f" ({check.operation})" if check.operation in "QKV" else ""
        place = f"layer {layer}, " if layer >= 0 else ""
        return f"{place}rank {check.rank}: {check.tensor}{part}"

    def _share(self, check: Check) -> int:
        return check.rank % self._parallel.tp

    def _embedding(self, hidden: Tensor, check: Check) -> Tensor:
        vocab = self._sharded.share(self._share(check)).vocab
        inside = (self._ids >= vocab.start) & (self._ids < vocab.stop)
        return torch.where(inside[:, None], hidden, 0)

    def _expected(self, trace: Trace, weights: _Used, check: Check) -> Tensor:
        share = self._sharded.share(self._share(check))
        operation = check.operation
        if operation in ("attention.dense", "mlp.proj"):
            return weights.parts[operation][self._share(check)]
        return {
            "norm": lambda: trace.normed,
            "Q": lambda: trace.query[:, share.queries],
            "K": lambda: trace.key[:, share.groups],
            "V": lambda: trace.value[:, share.groups],
            "attention": lambda: trace.attended[:, share.columns],
            "post norm": lambda: trace.post_normed,
            "mlp.fc": lambda: trace.wide[:, share.ffn],
        }[operation]()

    def _check_scales(self, layer: int, weights: _Used) -> None:
        """An FP8 weight's scale is known to the last bit."""
        if self._checkpoint.precision.weights is not Dtype.FP8:
            return
        stage = next(
            s
            for s in range(self._parallel.pp)
            if layer in self._parallel.layers(s, self._source.config.num_layers)
        )
        local = layer - self._parallel.layers(stage, self._source.config.num_layers).start
        for name, amax in weights.amaxes.items():
            weight = f"transformer.layers.{local}.{name}.weight"
            scale_name = trtllm_scale_name(weight, ScaleKind.WEIGHT)
            wanted = float(scale_of(amax))
            for tp_rank in range(self._parallel.tp):
                rank = stage * self._parallel.tp + tp_rank
                found = float(self._checkpoint.read(rank, scale_name)[0])
                if found != wanted:
                    where = f"layer {layer}, rank {rank}: {scale_name}"
                    self._faults.append(
                        Fault(where, abs(found / wanted - 1), f"{found:.8g}, not {wanted:.8g}")
                    )

    def _head(self, free: Tensor, hidden: Tensor) -> tuple[float, float]:
        normed = self._lead(lambda: self._reference.final_norm(hidden))
        difference = square = 0.0
        best: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        mine = {
            tp_rank: (logits, checks)
            for tp_rank, logits, checks in self._sharded.head(free, hidden)
        }
        for tp_rank in range(self._parallel.tp):
            rows = self._sharded.share(tp_rank).vocab
            if rows.start == rows.stop:
                continue
            wanted = self._lead(partial(self._reference.logits, normed, rows))
            logits, checks = mine.get(tp_rank, (None, []))
            self._compare(-1, checks, partial(_of_head, normed, wanted))
            if logits is not None:
                difference += float((logits - wanted).square().sum())
                square += float(wanted.square().sum())
                best.append(
                    (*logits.max(-1), *wanted.max(-1))  # values and places in these rows
                )
                best[-1][1].add_(rows.start)
                best[-1][3].add_(rows.start)
        sums = self._team.gather((difference, square))
        everyone = list(itertools.chain.from_iterable(self._team.gather(best)))
        ours, theirs = (torch.stack([one[at] for one in everyone]).max(0).indices for at in (0, 2))
        places = [torch.stack([one[at] for one in everyone]) for at in (1, 3)]
        chosen = [
            place.gather(0, index[None])[0]
            for place, index in zip(places, (ours, theirs), strict=True)
        ]
        top1 = float((chosen[0] == chosen[1]).float().mean())
        return math.sqrt(sum(s[0] for s in sums) / sum(s[1] for s in sums)), top1


def _of_head(normed: Tensor, logits: Tensor, check: Check) -> Tensor:
    return logits if check.operation == "logits" else normed


class _Used:
    """What of a reference layer's weights is wanted later: small enough to be sent around."""

    def __init__(self, weights: StreamedLayer) -> None:
        self.amaxes, self.parts = weights.amaxes, weights.parts


ORDER = ("embedding", "norm", "Q", "K", "V", "attention", "attention.dense", "post norm",
         "mlp.fc", "mlp.proj", "final norm", "logits")  # fmt: skip


def _order(check: Check) -> tuple[int, int]:
    """As data flows."""
    return ORDER.index(check.operation), check.rank
