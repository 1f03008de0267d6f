"""Probable causes of wrong results, and settings in which a checkpoint differs from its source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from nemotron_convert.calibration.decoder import from_words
from nemotron_convert.calibration.layer_weights import NORM_SOURCES
from nemotron_convert.source.adapter import Adapter
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.virtual_tokens import FILE_NAME
from nemotron_convert.tensor_map import EMBEDDING, HEAD
from nemotron_convert.verification.report import Fault
from nemotron_convert.verification.sharded_model import Check, ShardedModel
from nemotron_core.errors import NemotronError
from nemotron_core.reward import HEAD_NAME

FINAL_NORM = "model.decoder.final_layernorm.weight"
VOCABULARIES = {"embedding": EMBEDDING, "logits": HEAD}
"""Operations whose table holds the source's rows unchanged, with that source tensor."""
PROMPT_TOLERANCE = 1e-4
"""Largest relative error of virtual tokens, which are computed in F32 and here in F64."""
COMPARED_ROWS = 8
"""Number of rows that are compared to recognize another rank's table."""
SIZES = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_size")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual − expected‖ / ‖expected‖ in the Frobenius norm, or infinity if not finite."""
    size = float(expected.norm())
    error = float((actual - expected).norm())
    if not math.isfinite(error):
        return math.inf
    return error / size if size else (math.inf if error else 0.0)


class Diagnosis:
    """Compares wrong results with the results that well-known mistakes would give."""

    def __init__(self, source: Source, checkpoint: Checkpoint, sharded: ShardedModel) -> None:
        self._source, self._checkpoint, self._sharded = source, checkpoint, sharded

    def hint(
        self, layer: int, check: Check, expected: Callable[[Check], Tensor], limit: float
    ) -> str:
        """Return the mistake whose result is within `limit` of this check's, or an empty string.

        `expected` returns the right result of a check. `layer` is -1 outside the layers.
        """
        if check.operation in ("K", "V"):
            other = "V" if check.operation == "K" else "K"
            swapped = expected(Check(check.rank, check.tensor, other, check.result))
            if relative_error(check.result, swapped) <= limit:
                return "K and V are swapped"
        if check.operation == "attention":
            return "rotary embedding or scaling; see config.json"
        if "norm" in check.operation:
            return "gamma is stored without its 1" if self._lacks_one(layer, check) else ""
        tp = self._sharded.parallel.tp
        for rank in range(tp):
            if rank == check.rank % tp:
                continue
            if check.operation in VOCABULARIES:
                is_of_rank = self._holds_rows(check, rank)
            else:
                result = expected(Check(rank, check.tensor, check.operation, check.result))
                is_of_rank = bool(result.any()) and relative_error(check.result, result) <= limit
            if is_of_rank:
                return f"this is the shard of TP rank {rank}"
        return ""

    def _lacks_one(self, layer: int, check: Check) -> bool:
        norm = check.tensor.split(".")[-2]
        name = NORM_SOURCES[norm] + "_weight" if norm in NORM_SOURCES else FINAL_NORM
        gamma = self._source.tensors[name].read_layer(max(layer, 0))[0]
        held = torch.from_numpy(self._checkpoint.read(check.rank, check.tensor).astype(np.float32))
        is_stored = torch.equal(from_words(gamma).float(), held)
        return self._source.config.gamma_is_centered and is_stored

    def _holds_rows(self, check: Check, tp_rank: int) -> bool:
        held = self._checkpoint.read(check.rank, check.tensor)[:COMPARED_ROWS].view(np.uint16)
        vocab = self._sharded.slices(tp_rank).vocab
        rows = np.arange(vocab.start, min(vocab.stop, vocab.start + COMPARED_ROWS))
        table = self._source.tensors[VOCABULARIES[check.operation]]
        return len(rows) == len(held) and bool((table.read_rows(rows) == held).all())


def check_sizes(source: Source, checkpoint: Checkpoint) -> None:
    """Raise `NemotronError` if the checkpoint's sizes differ from the source's."""
    shape = checkpoint.config.model_shape()
    sizes = {key: (getattr(shape, key), getattr(source.config, key)) for key in SIZES}
    sizes["vocab_size"] = (checkpoint.config.vocab_size, source.vocab_size)
    for key, (actual, expected) in sizes.items():
        if actual != expected:
            raise NemotronError(
                f"{key} is {actual}, the source has {expected}",
                where=checkpoint.folder,
                remedy="name the .nemo that it was converted from",
            )


def adapter_faults(adapters: Sequence[Adapter], checkpoint: Checkpoint) -> Iterator[Fault]:
    """Yield a fault if the checkpoint was merged with other adapters than these."""
    merged = checkpoint.manifest.adapters
    named = [(entry.file, entry.sha256) for entry in merged]
    given = [(adapter.name, adapter.sha256) for adapter in adapters]
    if [digest for _, digest in named] != [digest for _, digest in given]:
        text = ", ".join(f"{name} ({digest[:12]})" for name, digest in given) or "none"
        expected = ", ".join(f"{name} ({digest[:12]})" for name, digest in named) or "none"
        hint = f"the checkpoint was merged with {expected}, given: {text}"
        yield Fault("manifest.json: adapters", math.inf, hint)


def prompt_faults(vectors: Tensor, checkpoint: Checkpoint) -> Iterator[Fault]:
    """Yield a fault if the checkpoint has others than these virtual tokens [N, H].

    Raises `NemotronError` if its own cannot be read.
    """
    stored = checkpoint.virtual_tokens()
    held = torch.zeros_like(vectors[:0]) if stored is None else torch.from_numpy(stored)
    if len(held) != len(vectors):
        hint = f"{len(held)} virtual tokens, not {len(vectors)}"
        yield Fault(FILE_NAME, math.inf, hint)
    elif (error := relative_error(held, vectors)) > PROMPT_TOLERANCE:
        yield Fault(FILE_NAME, error, "not the vectors of the P-tuning's MLP")


def source_faults(source: Source, checkpoint: Checkpoint) -> Iterator[Fault]:
    """Yield a fault for each part of the source that no checkpoint has, unless left out by hand."""
    unknown = source.contents.unknown(checkpoint.manifest.ignored_tensors)
    for name, description in unknown.items():
        yield Fault(f"source: tensor {name}", math.inf, f"{description}, not understood")
    for setting in source.contents.settings.faults:
        yield Fault(f"source: setting {setting}", math.inf, "not carried out")


def kind_faults(source: Source, checkpoint: Checkpoint) -> Iterator[Fault]:
    """Yield a fault if the checkpoint is of another kind, or its head is not the source's.

    Raises `NemotronError` if a head cannot be read.
    """
    stored, held = source.reward_head, checkpoint.reward_head()
    if stored is None or held is None:
        if (stored is None) != (held is None):
            hint = "text, not reward" if held is None else "reward, not text"
            yield Fault("config.json: kind", math.inf, hint)
        return
    expected_head = stored.read()
    for name in ("attributes", "weights"):
        if getattr(held, name) != getattr(expected_head, name):
            yield Fault(f"{HEAD_NAME}: {name}", math.inf, "others than the model card's")
    for name in ("weight", "bias"):
        actual, expected = (torch.from_numpy(getattr(head, name)) for head in (held, expected_head))
        if not torch.equal(actual, expected):  # F32 holds every stored number exactly
            yield Fault(f"{HEAD_NAME}: {name}", relative_error(actual, expected))


def config_faults(source: Source, checkpoint: Checkpoint) -> Iterator[Fault]:
    """Yield a fault for each setting of `config.json` that differs from the source's."""
    config = checkpoint.config
    model = config.model_shape()
    settings = {
        "rotary_pct": (model.rotary_pct, source.config.rotary_pct),
        "rotary_base": (model.rotary_base, source.config.rotary_base),
        "norm_epsilon": (model.norm_eps, source.config.norm_eps),
        "max_position_embeddings": (model.max_positions, source.config.max_positions),
        "apply_query_key_layer_scaling": (config.apply_query_key_layer_scaling, False),
    }
    for key, (actual, expected) in settings.items():
        if actual != expected:
            error = abs(actual / expected - 1) if expected else math.inf
            yield Fault(f"config.json: {key}", error, f"{actual}, not {expected}")
