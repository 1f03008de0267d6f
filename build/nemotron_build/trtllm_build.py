"""The flags of `trtllm-build` in TensorRT-LLM 1.2, and which of them suit this model."""

from __future__ import annotations

from collections.abc import Mapping

TOOL = "trtllm-build"
PLUGIN_DTYPES = ("auto", "float16", "float32", "bfloat16", "int32", "disable")
SWITCH = ("enable", "disable")
Choices = tuple[str, ...] | type[int]

FLAGS: dict[str, Choices] = {
    "gpt_attention_plugin": PLUGIN_DTYPES,
    "gemm_plugin": (*PLUGIN_DTYPES, "fp8", "nvfp4"),
    "nccl_plugin": PLUGIN_DTYPES,
    "low_latency_gemm_plugin": ("fp8", "disable"),
    "context_fmha": SWITCH,
    "remove_input_padding": SWITCH,
    "use_paged_context_fmha": SWITCH,
    "use_fp8_context_fmha": SWITCH,
    "multiple_profiles": SWITCH,
    "reduce_fusion": SWITCH,
    "norm_quant_fusion": SWITCH,
    "user_buffer": SWITCH,
    "tokens_per_block": int,
    "logits_dtype": ("float16", "float32"),
    "opt_num_tokens": int,
    "workers": int,
    "log_level": ("internal_error", "error", "warning", "info", "verbose", "debug"),
    "profiling_verbosity": ("layer_names_only", "detailed", "none"),
}
"""Flags that a profile may set, with their values. Flags that follow from other keys are absent."""

LOGITS: dict[str, tuple[str, ...]] = {
    "none": (),
    "generation": ("--gather_generation_logits",),
    "context": ("--gather_context_logits", "--gather_generation_logits"),
}
"""Switches for the profile's `logits`. `--gather_all_token_logits` means both."""

WRONG: dict[tuple[str, str], str] = {
    ("reduce_fusion", "enable"): "the decoder layer of this architecture cannot fuse it",
    ("norm_quant_fusion", "enable"): "the decoder layer of this architecture cannot fuse it",
    ("user_buffer", "enable"): "it needs reduce_fusion, which this architecture does not have",
    ("remove_input_padding", "disable"): "in-flight batching needs packed input",
    ("context_fmha", "disable"): "in-flight batching needs it for the prompts' attention",
}
"""Flags that exist but would break this model's engine, with the reason."""

REMOVED = frozenset(
    {
        "use_custom_all_reduce",
        "multi_block_mode",
        "enable_xqa",
        "context_fmha_fp32_acc",
        "attention_qk_half_accumulation",
        "use_context_fmha_for_generation",
        "lookup_plugin",
        "paged_kv_cache",
    }
)
"""Flags of earlier versions, which many guides still name."""


def check_flags(flags: Mapping[str, str | int]) -> None:
    """Raise `ValueError` for a flag that this version lacks or that this model cannot use."""
    for name, value in flags.items():
        if name in REMOVED:
            raise ValueError(f"{name} is no flag of {TOOL} 1.2 any more: leave it out")
        choices = FLAGS.get(name)
        if choices is None:
            raise ValueError(f"{name} is no flag of {TOOL} that a profile may set")
        if choices is int:
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: use a positive number")
        elif isinstance(choices, tuple) and value not in choices:
            raise ValueError(f"{name} is {value!r}: use one of {', '.join(choices)}")
        if reason := WRONG.get((name, str(value))):
            raise ValueError(f"{name} must not be {value!r}: {reason}")


def to_arguments(flags: Mapping[str, object]) -> list[str]:
    """Return the flags as arguments of `trtllm-build`."""
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]
