"""Options of a conversion, and the layout and the sizes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from nemotron_convert.calibration.options import OWN_TEXTS, CalibrationOptions
from nemotron_convert.shards import Parallel
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.layout import (
    BF16_ONLY,
    Dtype,
    Format,
    Layout,
    Precision,
    hf_layout,
    trtllm_layout,
)
from nemotron_convert.target.tensor_file import TensorFile
from nemotron_core.errors import NemotronError


@dataclass(frozen=True)
class Options:
    """Options of a conversion."""

    parallel: Parallel
    """TP ranks and PP stages. The Hugging Face format must have one of each."""
    format: Format = Format.TRTLLM
    jobs: int | None = None
    """Number of threads of each process; without, as many as the disk takes."""
    resume: bool = False
    """Whether to resume an interrupted run of the same conversion."""
    reuse: bool = False
    """Whether to accept the output of a finished run of the same conversion."""
    strict: bool = False
    """Whether to refuse NaN, Inf and other types than BF16, which the manifest would list."""
    ignore: tuple[str, ...] = ()
    """Patterns of the names of tensors to leave out although they are not understood."""
    adapters: tuple[Path, ...] = ()
    """LoRA and IA3 adapters to merge into the model, in this order, and at most one P-tuning."""
    ignore_template: bool = False
    """Whether to convert a model whose chat template gives other prompts than this project."""
    precision: Precision = BF16_ONLY
    calibration: CalibrationOptions = OWN_TEXTS
    """Source of the scales of an FP8 conversion."""

    @property
    def identity(self) -> dict[str, object]:
        """The options that decide the bytes that are written, without the calibration."""
        return {
            "format": self.format.value,
            "tp": self.parallel.tp,
            "pp": self.parallel.pp,
            "dtype": self.precision.weights.value,
            "kv_cache_dtype": self.precision.kv_cache.value,
        }


def lay_out(source: Source, options: Options) -> Layout:
    """Return the files and tensors that a conversion writes.

    Raises `NemotronError` if the model cannot be split as requested, or the options contradict
    each other.
    """
    precision = options.precision
    if precision.kv_cache is Dtype.FP8 and precision.weights is not Dtype.FP8:
        raise NemotronError(
            "an FP8 KV cache needs calibrated scales",
            where="--kv-cache-dtype",
            remedy="add --dtype fp8",
        )
    if source.prompt_table is not None:
        _check_prompt(options)
    if options.format is Format.HF:
        if options.parallel != Parallel(1, 1):
            raise NemotronError(
                "the Hugging Face format is not split", where="--tp, --pp", remedy="leave them out"
            )
        is_reward = source.reward_head is not None
        return hf_layout(source.config, source.vocab_size, precision, is_reward=is_reward)
    options.parallel.check(source.config)
    precision = replace(precision, exact_norms=source.reward_head is not None)
    return trtllm_layout(source.config, source.vocab_size, options.parallel, precision)


def _check_prompt(options: Options) -> None:
    """Raise `NemotronError` if the output has no place for virtual tokens."""
    if options.format is Format.HF:
        raise NemotronError(
            "this format has no place for the virtual tokens of a P-tuning",
            where="--format hf",
            remedy="write a checkpoint for the lane cpu without --format; for other programs, "
            "convert the base alone, and the P-tuning with --format peft",
        )
    if options.precision.weights is Dtype.FP8:
        raise NemotronError(
            "a calibration sees tokens, not the virtual tokens of a P-tuning",
            where="--dtype fp8",
            remedy="convert in BF16; `nemotron build --weights int8` makes the weights smaller",
        )


def tensor_bytes(layout: Layout) -> int:
    """Return the number of bytes of all tensors of `layout`."""
    return sum(spec.nbytes for tensors in layout.files.values() for spec in tensors.values())


def missing_bytes(layout: Layout, folder: Path) -> int:
    """Return the number of bytes that the files of `layout` still need on the disk of `folder`."""
    missing = 0
    for name, tensors in layout.files.items():
        path = folder / name
        held = path.stat().st_blocks * 512 if path.exists() else 0
        missing += max(0, TensorFile(path, tensors).size - held)
    return missing


def require_space(needed: int, free: int, folder: Path) -> None:
    """Raise `NemotronError` if fewer than `needed` bytes are free on the disk of `folder`."""
    if needed > free:
        raise NemotronError(
            f"the checkpoint needs {needed:,} more bytes, {free:,} are free",
            where=folder,
            remedy="make room or name another disk with -o",
        )
