"""Upper limits of a profile's capacity and speed, computed before a GPU is rented.

A decoding step reads every weight except the embedding table once, and the keys and values of all
its sequences. It cannot be faster than the memory delivers these bytes, nor faster than the
multiplications take. (The roofline model: Williams, Waterman and Patterson, "Roofline", CACM 52(4),
2009. For transformers: Pope et al., "Efficiently Scaling Transformer Inference", MLSys 2023,
section 2.)

- bytes per step and GPU   weights - embedding table + sequences · context · KV bytes per token
- operations per token     2 · weights of the linear layers, and for attention over n tokens
                           2 · n per layer, query head and channel for each of Q·K and P·V
- step                     per pipeline stage the greater of both times; stages follow each other
- KV cache                 `kv_cache_share` of what weights, activations and CUDA leave of the
                           memory, of which the engine takes `memory_share`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemotron_build.hardware import Hardware, find_hardware, measure_this_machine
from nemotron_build.lanes import lane_of
from nemotron_build.lanes.deployment import Sizing
from nemotron_build.profile import Limits, Profile
from nemotron_build.stage import Stage, make_stage
from nemotron_convert.plan import GIB
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import Layout, Precision, trtllm_layout
from nemotron_core.errors import NemotronError
from nemotron_core.family import FAMILY, LARGEST, VOCABULARY
from nemotron_core.model_config import ModelConfig

UTILISATION = 0.6
"""Fraction of the peak arithmetic that long prompts reach: assumed, and printed with the result."""
RUNTIME_BYTES = 1 << 30
"""Bytes that CUDA's context and NCCL's buffers take on a GPU, estimated."""
CONVERT_RATE = 0.58e9
"""Bytes per second that `nemotron convert` wrote on two cores (docs/convert.md)."""
KV_BYTES = {"bf16": 2, "fp8": 1, "f32": 4}
"""Bytes of one element of a key or a value, by its type."""


@dataclass(frozen=True)
class ServingPlan:
    """Capacity and speed of a profile on one processor. All rates are upper limits.

    Sizes are in bytes, durations in seconds, rates in tokens per second.
    """

    profile: Profile
    hardware: Hardware
    sizing: Sizing
    stages: tuple[Stage, ...]
    max_positions: int
    """Number of tokens of the model's longest sequence."""
    activations: int
    """Estimated bytes of one layer's inputs and outputs for the tokens of one step."""
    checkpoint: int
    """Bytes of the checkpoint. The engine has the same size."""
    source: int
    """Bytes of the `.nemo`."""
    convert_rate: float
    """Bytes per second that the conversion writes."""
    utilisation: float
    """Fraction of the peak arithmetic that prompts reach."""

    @property
    def gpus(self) -> int:
        return self.sizing.parallel.world_size

    @property
    def context(self) -> int:
        """Number of tokens in a full sequence."""
        return min(self.max_positions, self.profile.limits.max_seq_len)

    @cached_property
    def weights(self) -> int:
        """Bytes of the weights on the fullest GPU."""
        return max(stage.weights for stage in self.stages)

    @cached_property
    def kv_tokens(self) -> int:
        """Number of tokens whose keys and values fit; 0 if not even the weights fit."""
        if self.sizing.kv_cache_tokens is not None:
            return self.sizing.kv_cache_tokens
        memory = int(self.hardware.memory * self.sizing.memory_share)
        available = memory - RUNTIME_BYTES - self.activations
        fraction = self.sizing.kv_cache_share
        return min(
            max(0, int((available - stage.weights) * fraction)) // stage.kv_token
            for stage in self.stages
        )

    @property
    def fits(self) -> bool:
        """Whether the memory holds the weights and at least one token's keys and values."""
        return self.weights < self.hardware.memory and self.kv_tokens > 0

    @property
    def sequences(self) -> int:
        """Number of full sequences whose keys and values fit at once."""
        return self.kv_tokens // self.context

    @property
    def batch(self) -> int:
        """Number of full sequences in one step that the profile and the KV cache allow."""
        return min(self.profile.limits.max_batch_size, self.sequences // len(self.stages))

    @property
    def weight_read_seconds(self) -> float:
        """Seconds per token at batch 1 for reading the weights alone."""
        return sum(stage.read for stage in self.stages) / self.hardware.bandwidth

    def step_seconds(self, sequences: int, tokens: int = 1) -> float:
        """Return the seconds that a step takes: `tokens` of each of the full sequences."""
        return sum(self._stage_seconds(stage, sequences, tokens) for stage in self.stages)

    def decode_rate(self, sequences: int) -> float:
        """Return the tokens per second if each pipeline stage works on a batch of `sequences`."""
        return sequences * len(self.stages) / self.step_seconds(sequences)

    def _stage_seconds(self, stage: Stage, sequences: int, tokens: int) -> float:
        kv = sequences * self.context * stage.kv_token
        reading = (stage.read + kv) / self.hardware.bandwidth
        computing = self._compute_seconds(stage, self.context, head=True)
        return max(reading, sequences * tokens * computing)

    @cached_property
    def prefill_rate(self) -> float | None:
        """Prompt tokens per second at `utilisation` of the peak; `None` if no peak is known.

        Each stage works on another prompt. On average, a token attends to half of its prompt.
        """
        if not self.hardware.flops:
            return None
        slowest = max(
            self._compute_seconds(stage, self.context / 2, head=self.sizing.all_logits)
            for stage in self.stages
        )
        return self.utilisation / slowest

    def _compute_seconds(self, stage: Stage, attended: float, *, head: bool) -> float:
        """Return the seconds of one token that attends to `attended` tokens, at the peak."""
        peak = self.hardware.flops
        if not peak:
            return 0.0
        linear = sum(2 * count / peak[dtype] for dtype, count in stage.linear.items())
        rest = stage.attention * attended + (2 * stage.head if head else 0)
        return linear + rest / peak["bf16"]

    @property
    def disk(self) -> int:
        """Bytes on the disk: the source, the checkpoint and the engine."""
        return self.source + 2 * self.checkpoint

    @property
    def convert_seconds(self) -> float:
        """Seconds of a conversion that reads each byte of the source once, without calibration."""
        return self.source / self.convert_rate

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for `--json`."""
        batch = self.batch
        return {
            "profile": self.profile.model_dump(mode="json"),
            "hardware": asdict(self.hardware),
            "gpus": self.gpus,
            "fits": self.fits,
            "weights_bytes_per_gpu": self.weights,
            "activation_bytes_per_gpu": self.activations,
            "kv_bytes_per_token_per_gpu": max(stage.kv_token for stage in self.stages),
            "kv_tokens": self.kv_tokens,
            "context": self.context,
            "sequences": self.sequences,
            "weight_read_seconds": self.weight_read_seconds,
            "decode_seconds_batch_1": self.step_seconds(1),
            "batch": batch,
            "decode_tokens_per_second": self.decode_rate(batch) if batch else 0.0,
            "prefill_tokens_per_second": self.prefill_rate,
            "utilisation": self.utilisation,
            "convert_seconds": self.convert_seconds,
            "convert_bytes_per_second": self.convert_rate,
            "disk_bytes": self.disk,
        }

    def __str__(self) -> str:
        """Return the plan as a table for a person."""
        return "\n".join(f"{name:<18}{text}" for name, text in self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        hardware, batch = self.hardware, self.batch
        unit = "GPU" if hardware.flops else "machine"
        fits = "" if self.fits else ": DOES NOT FIT"
        rows = [
            ("on", f"{self.gpus} × {hardware.name}, {hardware.memory / GIB:.1f} GiB, "
             f"{hardware.bandwidth / 1e9:,.0f} GB/s each"),
            ("weights", f"{self.weights / GIB:.1f} GiB per {unit}{fits}"),
            ("KV cache", f"{self.kv_tokens:,} tokens, {max(s.kv_token for s in self.stages):,} "
             f"bytes each per {unit}: {self.sequences} sequences of {self.context} at once"),
            ("decode, batch 1", f"{self.weight_read_seconds * 1e3:.1f} ms per token for reading "
             f"the weights; {self.step_seconds(1) * 1e3:.1f} ms at {self.context} tokens"),
        ]  # fmt: skip
        if batch:
            rows.append((
                f"decode, batch {batch}",
                f"{self.step_seconds(batch) * 1e3:.1f} ms per step, "
                f"{self.decode_rate(batch):,.0f} tokens/s",
            ))  # fmt: skip
        if self.prefill_rate is not None:
            rows.append((
                "prefill",
                f"{self.prefill_rate:,.0f} tokens/s at {self.utilisation:.0%} of the peak",
            ))  # fmt: skip
        return [
            *rows,
            ("convert", f"{self.convert_seconds / 60:.0f} min at {self.convert_rate / 1e9:.2f} "
             "GB/s"),
            ("disk", f"{self.disk / 1e9:,.0f} GB: .nemo {self.source / 1e9:,.0f}, checkpoint and "
             f"engine {self.checkpoint / 1e9:,.0f} each"),
        ]  # fmt: skip


def plans(
    profile: Profile, gpus: Sequence[str], checkpoint: Path | None, model: str = LARGEST
) -> list[ServingPlan]:
    """Return a plan for each of the GPUs, or for the profile's GPU if none are named.

    Without a checkpoint, the plan is for `model`, a name of `FAMILY`. For a profile of the CPU, the
    memory bandwidth of this machine is measured. Raises `NemotronError` if a GPU is unknown or does
    not fit the profile, or if the model cannot be split as the profile says.
    """
    sizing = lane_of(profile).sizing(profile)
    if sizing.gpu is None:
        if gpus:
            raise NemotronError(
                "the profile is for a CPU", where="--gpu", remedy="name a GPU's profile"
            )
        processors = [measure_this_machine()]
    else:
        processors = [find_hardware(name) for name in gpus or [sizing.gpu]]
        for gpu in processors:
            if sizing.weights not in gpu.flops:
                raise NemotronError(f"{gpu.name} does not compute in FP8", where="--gpu")
    shape, vocab_size = shape_of(checkpoint, model)
    return [make_plan(profile, p, shape=shape, vocab_size=vocab_size) for p in processors]


def shape_of(checkpoint: Path | None, model: str) -> tuple[ModelConfig, int]:
    """Return the shape and the vocabulary's size of a checkpoint, or else of a model by its name.

    Raises `NemotronError` if it is no checkpoint, or the family has no such model.
    """
    if checkpoint is not None:
        config = Checkpoint.open(checkpoint).config
        return config.model_shape(), config.vocab_size
    if model not in FAMILY:
        raise NemotronError(
            f"no model {model!r} in the family",
            where="--model",
            remedy=f"use one of {', '.join(FAMILY)}, or --checkpoint",
        )
    return FAMILY[model].config, VOCABULARY


def make_plan(
    profile: Profile,
    hardware: Hardware,
    *,
    shape: ModelConfig = FAMILY[LARGEST].config,
    vocab_size: int = VOCABULARY,
    convert_rate: float = CONVERT_RATE,
    utilisation: float = UTILISATION,
) -> ServingPlan:
    """Return the plan of a profile on one kind of processor.

    Raises `NemotronError` if the model cannot be split as the profile says.
    """
    sizing = lane_of(profile).sizing(profile)
    parallel, kv_bytes = sizing.parallel, KV_BYTES[sizing.kv_cache_dtype]
    layout = trtllm_layout(shape, vocab_size, parallel, Precision(sizing.weights))
    unsplit = trtllm_layout(shape, vocab_size, Parallel(1, 1), Precision())
    return ServingPlan(
        profile=profile,
        hardware=hardware,
        sizing=sizing,
        stages=tuple(
            make_stage(layout, stage, parallel, shape, kv_bytes, sizing.packed)
            for stage in range(parallel.pp)
        ),
        max_positions=shape.max_positions,
        activations=_activations(profile.limits, shape, vocab_size, sizing),
        checkpoint=_nbytes(layout),
        source=_nbytes(unsplit),
        convert_rate=convert_rate,
        utilisation=utilisation,
    )


def _activations(limits: Limits, shape: ModelConfig, vocab_size: int, sizing: Sizing) -> int:
    """Return the estimated bytes of a step's activations on one GPU.

    Per token, in BF16: the residual stream, its norm and a layer's output, which every GPU holds in
    full, and QKV and both sides of the MLP, which are split over the GPUs. Per sequence, or per
    token if the engine returns the logits of prompts: a row of F32 logits.
    """
    split = shape.qkv_rows + 2 * shape.intermediate_size
    per_token = 2 * (3 * shape.hidden_size + split // sizing.parallel.tp)
    rows = limits.max_num_tokens if sizing.all_logits else limits.max_batch_size
    return limits.max_num_tokens * per_token + 4 * rows * vocab_size


def _nbytes(layout: Layout) -> int:
    return sum(spec.nbytes for tensors in layout.files.values() for spec in tensors.values())
