"""What a profile can hold and how fast it can be at best, before a GPU is rented.

A step of decoding reads every weight but the embedding table once, and the keys and values of all
its sequences; it cannot be faster than memory gives them, nor than its multiplications take. (The
roofline model: Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009; for transformers:
Pope et al., "Efficiently Scaling Transformer Inference", MLSys 2023, section 2.)

- read per step and GPU    weights - embedding table + sequences · context · KV bytes of a token
- multiply-adds per token  2 · weights of the linear layers, and for attention over n tokens
                           2 · n per layer, query head and channel for each of Q·K and P·V
- step                     per pipeline stage the greater of both times; stages follow each other
- KV cache                 `kv_cache_share` of the memory that weights, activations and CUDA leave
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemotron_build.hardware import Hardware, find_hardware, measure_this_machine
from nemotron_build.profile import CpuProfile, Limits, Profile
from nemotron_build.stage import Stage, make_stage
from nemotron_convert.plan import GIB
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import Dtype, Layout, Precision, trtllm_layout
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

NEMOTRON_4_340B = ModelConfig(
    num_layers=96,
    hidden_size=18432,
    intermediate_size=73728,
    num_heads=96,
    num_kv_heads=8,
    head_size=192,
    max_positions=4096,
    norm_eps=1e-5,
    rotary_pct=0.5,
    rotary_base=10000.0,
    gamma_is_centered=True,
    tokenizer_member="tokenizer.model",
)
VOCABULARY = 256000
CONTEXT = 4096
"""Tokens of a full sequence of this model."""
UTILISATION = 0.6
"""Share of the peak arithmetic that long prompts reach; an assumption, printed with the result."""
RUNTIME_BYTES = 1 << 30
"""CUDA's context and NCCL's buffers on a GPU: an estimate."""
CONVERT_RATE = 0.58e9
"""Bytes per second that `nemotron convert` wrote on two cores (docs/convert.md)."""
KV_BYTES = {"bf16": 2, "fp8": 1, "f32": 4}


@dataclass(frozen=True)
class ServingPlan:
    """Bytes, seconds, tokens per second. Rates are upper limits, not promises."""

    profile: Profile
    hardware: Hardware
    gpus: int
    stages: tuple[Stage, ...]
    activations: int
    """Bytes, an estimate: one layer's inputs and outputs for the tokens of one step."""
    checkpoint: int
    """Bytes of the checkpoint, and again of the engine."""
    source: int
    """Bytes of the `.nemo`."""
    convert_rate: float
    utilisation: float

    @property
    def limits(self) -> Limits:
        return self.profile.limits

    @property
    def context(self) -> int:
        return min(CONTEXT, self.limits.max_seq_len)

    @cached_property
    def weights(self) -> int:
        """Of the fullest GPU."""
        return max(stage.weights for stage in self.stages)

    @cached_property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit; 0 if not even the weights do."""
        if isinstance(self.profile, CpuProfile):
            return self.profile.limits.kv_cache_tokens
        taken = RUNTIME_BYTES + self.activations
        return min(
            max(0, int((self.hardware.memory - stage.weights - taken) * share)) // stage.kv_token
            for stage, share in ((stage, self.profile.kv_cache_share) for stage in self.stages)
        )

    @property
    def fits(self) -> bool:
        """The weights, and something beside them."""
        return self.weights < self.hardware.memory and self.kv_tokens > 0

    @property
    def sequences(self) -> int:
        """Full sequences that fit at once."""
        return self.kv_tokens // self.context

    @property
    def batch(self) -> int:
        """Full sequences in one step: what the profile and the cache allow."""
        return min(self.limits.max_batch_size, self.sequences // len(self.stages))

    @property
    def weight_read_seconds(self) -> float:
        """A token at batch 1, for the reading of weights alone."""
        return sum(stage.read for stage in self.stages) / self.hardware.bandwidth

    def step_seconds(self, sequences: int) -> float:
        """One token for each of so many full sequences."""
        return sum(self._stage_seconds(stage, sequences) for stage in self.stages)

    def decode_rate(self, sequences: int) -> float:
        """Tokens per second; each pipeline stage works on another batch of `sequences`."""
        return sequences * len(self.stages) / self.step_seconds(sequences)

    def _stage_seconds(self, stage: Stage, sequences: int) -> float:
        kv = sequences * self.context * stage.kv_token
        reading = (stage.read + kv) / self.hardware.bandwidth
        return max(reading, sequences * self._compute_seconds(stage, self.context, head=True))

    @cached_property
    def prefill_rate(self) -> float | None:
        """Prompt tokens per second at `utilisation` of the peak; None where no peak is stated.

        Each stage works on another prompt; the average token of one attends to half of it.
        """
        if not self.hardware.flops:
            return None
        slowest = max(
            self._compute_seconds(stage, self.context / 2, head=False) for stage in self.stages
        )
        return self.utilisation / slowest

    def _compute_seconds(self, stage: Stage, attended: float, *, head: bool) -> float:
        """One token at peak, which attends to so many."""
        peak = self.hardware.flops
        if not peak:
            return 0.0
        linear = sum(2 * count / peak[dtype] for dtype, count in stage.linear.items())
        other = stage.attention * attended + (2 * stage.head if head else 0)
        return linear + other / peak["bf16"]

    @property
    def disk(self) -> int:
        """Source, checkpoint and engine beside each other."""
        return self.source + 2 * self.checkpoint

    @property
    def convert_seconds(self) -> float:
        """Every byte of the source passes once; FP8 calibration is not in it."""
        return self.source / self.convert_rate

    def as_dict(self) -> dict[str, Any]:
        """For a program."""
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
        """For a person."""
        return "\n".join(f"{name:<18}{text}" for name, text in self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        hardware, batch = self.hardware, self.batch
        unit = "GPU" if hardware.flops else "machine"
        fits = "" if self.fits else ": DOES NOT FIT"
        facts = [
            ("on", f"{self.gpus} × {hardware.name}, {hardware.memory / GIB:.1f} GiB, "
             f"{hardware.bandwidth / 1e9:,.0f} GB/s each"),
            ("weights", f"{self.weights / GIB:.1f} GiB per {unit}{fits}"),
            ("KV cache", f"{self.kv_tokens:,} tokens, {max(s.kv_token for s in self.stages):,} "
             f"bytes each per {unit}: {self.sequences} sequences of {self.context} at once"),
            ("decode, batch 1", f"{self.weight_read_seconds * 1e3:.1f} ms per token for reading "
             f"the weights; {self.step_seconds(1) * 1e3:.1f} ms at {self.context} tokens"),
        ]  # fmt: skip
        if batch:
            facts.append((
                f"decode, batch {batch}",
                f"{self.step_seconds(batch) * 1e3:.1f} ms per step, "
                f"{self.decode_rate(batch):,.0f} tokens/s",
            ))  # fmt: skip
        if self.prefill_rate is not None:
            facts.append((
                "prefill",
                f"{self.prefill_rate:,.0f} tokens/s at {self.utilisation:.0%} of the peak",
            ))  # fmt: skip
        return [
            *facts,
            ("convert", f"{self.convert_seconds / 60:.0f} min at {self.convert_rate / 1e9:.2f} "
             "GB/s"),
            ("disk", f"{self.disk / 1e9:,.0f} GB: .nemo {self.source / 1e9:,.0f}, checkpoint and "
             f"engine {self.checkpoint / 1e9:,.0f} each"),
        ]  # fmt: skip


def plans(profile: Profile, gpus: Sequence[str], checkpoint: Path | None) -> list[ServingPlan]:
    """One for each GPU named, or for the profile's own; the CPU's bandwidth is measured now.

    NemotronError if a GPU is unknown or does not fit the profile, or the model cannot be split so.
    """
    if isinstance(profile, CpuProfile):
        if gpus:
            raise NemotronError(
                "the profile is for a CPU", where="--gpu", remedy="name a GPU's profile"
            )
        hardware = [measure_this_machine()]
    else:
        hardware = [find_hardware(name) for name in gpus or [profile.gpu.name]]
        for one in hardware:
            if profile.dtype not in one.flops:
                raise NemotronError(f"{one.name} does not compute in FP8", where="--gpu")
    if checkpoint is None:
        return [make_plan(profile, one) for one in hardware]
    config = Checkpoint.open(checkpoint).config
    shape, vocab_size = config.model_shape(), config.vocab_size
    return [make_plan(profile, one, shape=shape, vocab_size=vocab_size) for one in hardware]


def make_plan(
    profile: Profile,
    hardware: Hardware,
    *,
    shape: ModelConfig = NEMOTRON_4_340B,
    vocab_size: int = VOCABULARY,
    convert_rate: float = CONVERT_RATE,
    utilisation: float = UTILISATION,
) -> ServingPlan:
    """The plan of a profile on some hardware; NemotronError if the model cannot be split so."""
    if isinstance(profile, CpuProfile):
        parallel, weights = Parallel(1, 1), Dtype.BF16
        kv_bytes = KV_BYTES[profile.dtype]
    else:
        parallel = Parallel(profile.split.tp, profile.split.pp)
        weights = Dtype(profile.dtype)
        kv_bytes = KV_BYTES[profile.kv_cache_dtype]
    layout = trtllm_layout(shape, vocab_size, parallel, Precision(weights))
    unsplit = trtllm_layout(shape, vocab_size, Parallel(1, 1), Precision())
    return ServingPlan(
        profile=profile,
        hardware=hardware,
        gpus=parallel.world_size,
        stages=tuple(
            make_stage(layout, stage, parallel, shape, kv_bytes) for stage in range(parallel.pp)
        ),
        activations=_activations(profile.limits, shape, parallel),
        checkpoint=_nbytes(layout),
        source=_nbytes(unsplit),
        convert_rate=convert_rate,
        utilisation=utilisation,
    )


def _activations(limits: Limits, shape: ModelConfig, parallel: Parallel) -> int:
    """The residual stream, its norm and a layer's output whole; qkv and the MLP's sides split.

    All in BF16, and F32 logits of one token for each sequence.
    """
    split = shape.qkv_rows + 2 * shape.intermediate_size
    per_token = 2 * (3 * shape.hidden_size + split // parallel.tp)
    return limits.max_num_tokens * per_token + 4 * limits.max_batch_size * VOCABULARY


def _nbytes(layout: Layout) -> int:
    return sum(spec.nbytes for tensors in layout.files.values() for spec in tensors.values())
