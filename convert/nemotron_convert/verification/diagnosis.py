"""What may be behind a wrong result, and what a configuration says wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from nemotron_convert.calibration.calibration_pass import NORMS
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.tensor_map import EMBEDDING, HEAD
from nemotron_convert.verification.report import Fault
from nemotron_convert.verification.sharded_model import Check, ShardedModel
from nemotron_core.errors import NemotronError

FINAL_NORM = "model.decoder.final_layernorm.weight"
VOCABULARIES = {"embedding": EMBEDDING, "logits": HEAD}
"""Operations with a table whose rows are the source's as they are."""
COMPARED_ROWS = 8
SIZES = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_size")


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖; infinite where it is not finite."""
    size = float(wanted.norm())
    error = float((found - wanted).norm())
    if not math.isfinite(error):
        return math.inf
    return error / size if size else (math.inf if error else 0.0)


class Diagnosis:
    """Compares wrong results with what well-known mistakes would give."""

    def __init__(self, source: Source, checkpoint: Checkpoint, sharded: ShardedModel) -> None:
        self._source, self._checkpoint, self._sharded = source, checkpoint, sharded

    def hint(
        self, layer: int, check: Check, expected: Callable[[Check], Tensor], limit: float
    ) -> str:
        """The mistake whose result is within `limit` of this one, or nothing.

        `expected` gives the right result of a check; layer -1 is outside the layers.
        """
        if check.operation in ("K", "V"):
            other = "V" if check.operation == "K" else "K"
            wanted = expected(Check(check.rank, check.tensor, other, check.result))
            if relative_error(check.result, wanted) <= limit:
                return "K and V are swapped"
        if check.operation == "attention":
            return "rotary embedding or scaling; see config.json"
        if "norm" in check.operation:
            return "gamma is stored without its 1" if self._lacks_one(layer, check) else ""
        tp = self._sharded.parallel.tp
        others = (rank for rank in range(tp) if rank != check.rank % tp)
        for rank in others:
            if check.operation in VOCABULARIES:
                is_his = self._holds_rows(check, rank)
            else:
                wanted = expected(Check(rank, check.tensor, check.operation, check.result))
                is_his = bool(wanted.any()) and relative_error(check.result, wanted) <= limit
            if is_his:
                return f"this is the share of TP rank {rank}"
        return ""

    def _lacks_one(self, layer: int, check: Check) -> bool:
        norm = check.tensor.split(".")[-2]
        name = NORMS[norm] + "_weight" if norm in NORMS else FINAL_NORM
        gamma = self._source.tensors[name].read_layer(max(layer, 0))[0]
        held = self._checkpoint.read(check.rank, check.tensor).view(np.uint16)
        return self._source.config.gamma_is_centered and bool((gamma == held).all())

    def _holds_rows(self, check: Check, tp_rank: int) -> bool:
        held = self._checkpoint.read(check.rank, check.tensor)[:COMPARED_ROWS].view(np.uint16)
        vocab = self._sharded.share(tp_rank).vocab
        rows = np.arange(vocab.start, min(vocab.stop, vocab.start + COMPARED_ROWS))
        table = self._source.tensors[VOCABULARIES[check.operation]]
        return len(rows) == len(held) and bool((table.read_rows(rows) == held).all())


def check_sizes(source: Source, checkpoint: Checkpoint) -> None:
    """NemotronError if the checkpoint cannot be of this source."""
    held, given = checkpoint.config.model_shape(), source.config
    sizes = {key: (getattr(held, key), getattr(given, key)) for key in SIZES}
    sizes["vocab_size"] = (checkpoint.config.vocab_size, source.vocab_size)
    for key, (found, wanted) in sizes.items():
        if found != wanted:
            raise NemotronError(
                f"{key} is {found}, the source has {wanted}",
                where=checkpoint.folder,
                remedy="name the .nemo that it was converted from",
            )


def config_faults(source: Source, checkpoint: Checkpoint) -> Iterator[Fault]:
    """What `config.json` says of the model, and the source says otherwise."""
    config = checkpoint.config
    model = config.model_shape()
    pairs = {
        "rotary_pct": (model.rotary_pct, source.config.rotary_pct),
        "rotary_base": (model.rotary_base, source.config.rotary_base),
        "norm_epsilon": (model.norm_eps, source.config.norm_eps),
        "max_position_embeddings": (model.max_positions, source.config.max_positions),
        "apply_query_key_layer_scaling": (config.apply_query_key_layer_scaling, False),
    }
    for key, (found, wanted) in pairs.items():
        if found != wanted:
            error = abs(found / wanted - 1) if wanted else math.inf
            yield Fault(f"config.json: {key}", error, f"{found}, not {wanted}")
