"""Runs a checkpoint, rank by rank, beside the source that it was converted from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nemotron_convert.calibration.data import CalibrationData, read_ids, read_texts
from nemotron_convert.calibration.decoder import LayerTrace
from nemotron_convert.source.adapter import Adapter
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.fp8 import scale_of
from nemotron_convert.target.layout import Dtype, ScaleKind, trtllm_scale_name
from nemotron_convert.team import ALONE, Team
from nemotron_convert.tensor_map import LINEARS
from nemotron_convert.verification.diagnosis import (
    Diagnosis,
    adapter_faults,
    check_sizes,
    config_faults,
    kind_faults,
    prompt_faults,
    relative_error,
    source_faults,
)
from nemotron_convert.verification.logits import LogitsReport, VocabularySlice, join
from nemotron_convert.verification.reference_model import MatrixResults, ReferenceModel
from nemotron_convert.verification.report import Fault, LayerReport, Verification
from nemotron_convert.verification.sharded_model import Check, ShardedModel
from nemotron_core.progress import byte_progress

TOLERANCES = {Dtype.BF16: 0.005, Dtype.FP8: 0.08}
"""Largest relative error of one operation, by the dtype of its weights.

BF16 checkpoints hold the source's own numbers, so only the order of F32 sums differs. E4M3's three
mantissa bits give the weights an average error of 2.6 % and the inputs as much, together 3.7 %
(√2 · 2.6 %); twice that is still accepted."""
ADAPTER_TOLERANCE = 0.25
"""Largest error of the adapters' effect, as a fraction of it. Rounding changes it less, in FP8 too,
because it has no direction; a forgotten alpha, factors of other rows or of another layer more."""
OPERATIONS = ("embedding", "norm", "Q", "K", "V", "attention", "attention.dense", "post norm",
              "mlp.fc", "mlp.proj", "final norm", "logits")  # fmt: skip
"""Operations that are checked, in the order in which data flows."""
BF16_OPERATIONS = frozenset({"embedding", "norm", "post norm", "final norm", "attention", "logits"})
"""Operations without FP8 weights in FP8 checkpoints."""
SEQUENCES = 4
"""Number of the project's own texts that are run by default."""
LENGTH = 48
"""Largest number of tokens taken from each of them."""


def verify(
    checkpoint_path: Path,
    source_path: Path,
    *,
    adapters: Sequence[Path] = (),
    ids: Path | None = None,
    team: Team = ALONE,
) -> Verification:
    """Compare a checkpoint with its source on the sequences of `ids`, or on the project's texts.

    With `adapters`, the checkpoint must compute what the source does together with them.
    Every process of `team` must call this alike. Memory holds a few bands of the weights and the
    intermediate results of the tokens. Raises `NemotronError` if the checkpoint or the source
    cannot be read, or if their sizes differ.
    """
    with ExitStack() as stack:
        source = stack.enter_context(Source.open(source_path, is_lenient=True))
        opened = [stack.enter_context(Adapter.open(path, source.config)) for path in adapters]
        checkpoint = Checkpoint.open(checkpoint_path)
        data = read_ids(ids, source) if ids else _own_data(source)
        return _Verifier(source, opened, checkpoint, data, team).run()


def _own_data(source: Source) -> CalibrationData:
    """Return the beginnings of the project's first texts."""
    data = read_texts(None, source, LENGTH)
    return CalibrationData(data.name, data.sequences[:SEQUENCES])


class _Verifier:
    """One verification: the leader computes the reference, each process its ranks."""

    def __init__(
        self,
        source: Source,
        adapters: Sequence[Adapter],
        checkpoint: Checkpoint,
        data: CalibrationData,
        team: Team,
    ) -> None:
        self._source, self._checkpoint, self._team = source, checkpoint, team
        check_sizes(source, checkpoint)
        count = sum(len(a.prompt.vectors) for a in adapters if a.prompt is not None)
        prefix = range(source.vocab_size, source.vocab_size + count)
        sequences = [[*prefix, *sequence] for sequence in data.sequences]
        self._ids = torch.tensor(list(itertools.chain.from_iterable(sequences)))
        lengths = list(map(len, sequences))
        self._faults = [
            *adapter_faults(adapters, checkpoint),
            *source_faults(source, checkpoint),
            *config_faults(source, checkpoint),
            *kind_faults(source, checkpoint),
        ]
        self._sharded = ShardedModel(checkpoint, team, lengths)
        self._parallel = self._sharded.parallel
        self._diagnosis = Diagnosis(source, checkpoint, self._sharded)
        self._reference = ReferenceModel(source, adapters, self._parallel.tp, lengths)
        self._faults += prompt_faults(self._reference.virtual_tokens, checkpoint)

    def run(self) -> Verification:
        layer_bytes = sum(self._source.tensors[name].layer_bytes for name in LINEARS)
        num_layers = self._source.config.num_layers
        layers = []
        with (
            torch.inference_mode(),
            byte_progress(
                "verifying", num_layers * layer_bytes, shown=self._team.is_leader
            ) as report,
        ):
            reference = self._lead(lambda: self._reference.embed(self._ids))
            hidden, checks = self._sharded.embed(self._ids)
            self._compare(-1, checks, partial(self._expected_embedding, reference))
            for layer in range(num_layers):
                computed = self._reference.layer(layer, reference) if self._team.is_leader else None
                trace, products = self._team.broadcast(computed)
                hidden, checks = self._sharded.layer(layer, hidden, reference, trace)
                worst = self._compare(layer, checks, partial(self._expected, trace, products))
                self._compare_adapters(layer, checks, trace, products)
                self._check_weight_scales(layer, products.amaxes)
                reference = trace.hidden
                layers.append(LayerReport(layer, relative_error(hidden, reference), *worst))
                report(layer_bytes)
            logits = self._head(hidden, reference)
            scores = self._scores(hidden, reference)
        return Verification(
            dtype=self._checkpoint.precision.weights.value,
            tp=self._parallel.tp,
            pp=self._parallel.pp,
            tokens=len(self._ids),
            layers=layers,
            logits=logits.error,
            top1=logits.top1,
            mean_kl=logits.mean_kl,
            scores=scores,
            faults=self._faults,
        )

    def _lead(self, compute: Callable[[], Tensor]) -> Tensor:
        """Compute on the leader and return the result on every process."""
        return self._team.broadcast(compute() if self._team.is_leader else None)

    def _compare(
        self, layer: int, checks: list[Check], expected: Callable[[Check], Tensor]
    ) -> tuple[float, str]:
        """Add the faults of all processes; return the largest error and its tensor."""
        rows = []
        for check in checks:
            error = relative_error(check.result, expected(check))
            dtype = self._checkpoint.precision.weights
            limit = TOLERANCES[Dtype.BF16 if check.operation in BF16_OPERATIONS else dtype]
            hint = "" if error <= limit else self._diagnosis.hint(layer, check, expected, limit)
            order = OPERATIONS.index(check.operation), check.rank
            rows.append((order, error, limit, self._name(layer, check), hint))
        all_rows = sorted(itertools.chain.from_iterable(self._team.gather(rows)))
        self._faults += [
            Fault(name, error, hint) for _, error, limit, name, hint in all_rows if error > limit
        ]
        _, error, _, name, _ = max(all_rows, key=lambda row: row[1])
        return error, name

    def _compare_adapters(
        self, layer: int, checks: list[Check], trace: LayerTrace, products: MatrixResults
    ) -> None:
        """Add a fault for each matrix in which the adapters' effect is not that of the reference.

        The error is projected on the effect, so that it is found in FP8, too, and if the effect is
        much smaller than the result.
        """
        rows = []
        for check in checks:
            effect = products.adapter_effect(
                check, self._sharded.slices(check.rank), self._parallel.tp
            )
            if effect is None or not (square := float(effect.square().sum())):
                continue
            error = check.result - self._expected(trace, products, check)
            share = float((error * effect).sum()) / square
            if not abs(share) <= ADAPTER_TOLERANCE:
                order = OPERATIONS.index(check.operation), check.rank
                hint = f"it holds {1 + share:.2f} of the adapters' effect"
                rows.append((order, self._name(layer, check), abs(share), hint))
        for _, name, share, hint in sorted(itertools.chain.from_iterable(self._team.gather(rows))):
            self._faults.append(Fault(name, share, hint))

    def _name(self, layer: int, check: Check) -> str:
        part = f" ({check.operation})" if check.operation in "QKV" else ""
        place = f"layer {layer}, " if layer >= 0 else ""
        return f"{place}rank {check.rank}: {check.tensor}{part}"

    def _expected_embedding(self, embeddings: Tensor, check: Check) -> Tensor:
        vocab = self._sharded.slices(check.rank).vocab
        is_held = (self._ids >= vocab.start) & (self._ids < vocab.stop)
        return torch.where(is_held[:, None], embeddings, 0)

    def _expected(self, trace: LayerTrace, products: MatrixResults, check: Check) -> Tensor:
        """Return what the reference says that a check's result should be."""
        slices = self._sharded.slices(check.rank)
        operation = check.operation
        if operation in ("attention.dense", "mlp.proj"):
            return products.rank_products[operation][check.rank % self._parallel.tp]
        return {
            "norm": lambda: trace.normed,
            "Q": lambda: trace.query[:, slices.queries],
            "K": lambda: trace.key[:, slices.groups],
            "V": lambda: trace.value[:, slices.groups],
            "attention": lambda: trace.attended[:, slices.columns],
            "post norm": lambda: trace.post_normed,
            "mlp.fc": lambda: trace.wide[:, slices.ffn],
        }[operation]()

    def _check_weight_scales(self, layer: int, amaxes: dict[str, float]) -> None:
        """Add a fault for each FP8 weight whose scale is not amax / 448 to the last bit."""
        if self._checkpoint.precision.weights is not Dtype.FP8:
            return
        stage, local_layer = self._sharded.locate(layer)
        for name, amax in amaxes.items():
            weight = f"transformer.layers.{local_layer}.{name}.weight"
            scale_name = trtllm_scale_name(weight, ScaleKind.WEIGHT)
            expected = float(scale_of(amax))
            for rank in range(stage * self._parallel.tp, (stage + 1) * self._parallel.tp):
                actual = float(self._checkpoint.read(rank, scale_name)[0])
                if actual != expected:
                    where = f"layer {layer}, rank {rank}: {scale_name}"
                    hint = f"{actual:.8g}, not {expected:.8g}"
                    self._faults.append(Fault(where, abs(actual / expected - 1), hint))

    def _head(self, hidden: Tensor, reference: Tensor) -> LogitsReport:
        """Compare the logits, of which each TP rank has a slice of the vocabulary."""
        normed = self._lead(lambda: self._reference.final_norm(reference))
        slices: list[VocabularySlice] = []
        own_ranks = {
            tp_rank: (logits, checks)
            for tp_rank, logits, checks in self._sharded.head(hidden, reference)
        }
        for tp_rank in range(self._parallel.tp):
            rows = self._sharded.slices(tp_rank).vocab
            if rows.start == rows.stop:
                continue
            expected = self._lead(partial(self._reference.logits, normed, rows))
            logits, checks = own_ranks.get(tp_rank, (None, []))
            self._compare(-1, checks, partial(_expected_head, normed, expected))
            if logits is not None:
                slices.append(VocabularySlice.of(logits, expected, rows.start))
        return join(list(itertools.chain.from_iterable(self._team.gather(slices))))

    def _scores(self, hidden: Tensor, reference: Tensor) -> float | None:
        """Return the relative error of the scores that a reward model would give every token."""
        stored, held = self._source.reward_head, self._checkpoint.reward_head()
        if stored is None or held is None:
            return None
        actual = held.scores(self._sharded.final_norm(hidden).numpy())
        expected = stored.read().scores(self._reference.final_norm(reference).numpy())
        return relative_error(torch.from_numpy(actual), torch.from_numpy(expected))


def _expected_head(normed: Tensor, logits: Tensor, check: Check) -> Tensor:
    return logits if check.operation == "logits" else normed
