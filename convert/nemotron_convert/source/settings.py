"""Settings of a model's configuration that change its arithmetic and are not carried out here.

Such a setting is refused unless it has the value that Nemotron-4 has. Settings of neither this
table nor `ModelConfig` do not matter to a finished model (training, parallelism, data);
`inspect --verbose` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

OFF: tuple[object, ...] = (None, False)


@dataclass(frozen=True)
class FixedSetting:
    """A setting that must have one of the `allowed` values."""

    pattern: str
    """Pattern of its names, as in `fnmatch`."""
    effect: str
    """What another value does, as the end of a sentence about it."""
    allowed: tuple[object, ...] = OFF


FIXED_SETTINGS = (
    FixedSetting("seq_len_interpolation_factor", "stretches the positions", (*OFF, 1)),
    FixedSetting("rotary_seq_len_interpolation_factor", "stretches the positions", (*OFF, 1)),
    FixedSetting("rope_scaling", "changes the rotary embedding"),
    FixedSetting("rotary_scaling", "changes the rotary embedding"),
    FixedSetting("scale_positional_embedding", "changes the rotary embedding"),
    FixedSetting("use_rope_scaling", "changes the rotary embedding"),
    FixedSetting("rotary_interleaved", "rotates neighbours instead of halves"),
    FixedSetting("no_rope_freq", "leaves the positions out of some layers"),
    FixedSetting("openai_gelu", "changes the activation"),
    FixedSetting("gated_linear_unit", "gives the MLP a gate"),
    FixedSetting("swiglu", "gives the MLP a gate"),
    FixedSetting("activation_func_clamp_value", "cuts the activation off"),
    FixedSetting("glu_linear_offset", "changes the activation", (*OFF, 0)),
    FixedSetting("add_qkv_bias", "adds a bias to the queries, keys and values"),
    FixedSetting("qkv_bias", "adds a bias to the queries, keys and values"),
    FixedSetting("add_bias_linear", "adds a bias to the linear layers"),
    FixedSetting("qk_layernorm", "normalizes the queries and keys"),
    FixedSetting("qk_l2_norm", "normalizes the queries and keys"),
    FixedSetting("qk_clip", "limits the queries and keys"),
    FixedSetting("attention_output_gate", "gives attention a gate"),
    FixedSetting("headscale", "scales the heads"),
    FixedSetting("softmax_scale", "scales attention"),
    FixedSetting("softmax_type", "changes attention", (*OFF, "vanilla")),
    FixedSetting("query_pre_attn_scalar", "scales attention"),
    FixedSetting("*logit_softcapping", "bounds the logits"),
    FixedSetting("*logits_soft_cap", "bounds the logits"),
    FixedSetting("normalize_attention_scores", "leaves out the scale of attention", (None, True)),
    FixedSetting("attention_type", "changes attention", (None, "multihead")),
    FixedSetting("multi_latent_attention", "changes attention"),
    FixedSetting("use_mla", "changes attention"),
    FixedSetting("multi_query_attention", "changes attention"),
    FixedSetting("window_size", "lets attention see a window only"),
    FixedSetting("sliding_window*", "lets attention see a window only"),
    FixedSetting("window_attn_skip_freq", "lets attention see a window only"),
    FixedSetting("local_attention*", "lets attention see a window only"),
    FixedSetting("megatron_legacy", "orders the queries, keys and values in another way"),
    FixedSetting("transformer_block_type", "moves the norms", (None, "pre_ln")),
    FixedSetting("apply_residual_connection_post_layernorm", "moves the norms"),
    FixedSetting("post_attention_norm*", "adds norms"),
    FixedSetting("post_mlp_norm*", "adds norms"),
    FixedSetting("parallel_attn", "computes attention and MLP side by side"),
    FixedSetting("parallel_attention", "computes attention and MLP side by side"),
    FixedSetting("num_moe_experts", "has several experts", (*OFF, 0)),
    FixedSetting("moe_layer_freq", "has several experts", (*OFF, 0, 1)),
    FixedSetting("mtp_num_layers", "adds layers that predict further tokens", (*OFF, 0)),
    FixedSetting("hybrid_override_pattern", "has layers of other kinds"),
    FixedSetting("is_hybrid_model", "has layers of other kinds"),
    FixedSetting("heterogeneous_block_specs", "has layers of other kinds"),
    FixedSetting("heterogeneous_layers_config*", "has layers of other kinds"),
    FixedSetting("embedding_multiplier", "scales the embedding", (*OFF, 1)),
    FixedSetting("embedding_scale", "scales the embedding", (*OFF, 1)),
    FixedSetting("residual_multiplier", "scales the residuals", (*OFF, 1)),
    FixedSetting("logits_scaling", "scales the logits", (*OFF, 1)),
    FixedSetting("use_mup", "scales by the width"),
    FixedSetting("pre_process", "leaves the embedding out", (None, True)),
    FixedSetting("post_process", "leaves the head out", (None, True)),
)
"""All of them. `apply_query_key_layer_scaling` is none: Megatron divides and multiplies by the same
number, so it changes nothing."""


def settings_faults(settings: Mapping[str, Any]) -> list[str]:
    """Return, as text, each setting that has a value which is not carried out."""
    faults = []
    for key, value in settings.items():
        for fixed in FIXED_SETTINGS:
            if fnmatchcase(str(key), fixed.pattern) and not _is_one_of(value, fixed.allowed):
                faults.append(f"{short_text(key)}: {short_text(value)} {fixed.effect}")
    return faults


def other_settings(settings: Mapping[str, Any], used: frozenset[str]) -> dict[str, str]:
    """Return the settings that are neither in `used` nor fixed, as text."""
    return {
        short_text(key): short_text(value)
        for key, value in settings.items()
        if str(key) not in used
        and not any(fnmatchcase(str(key), fixed.pattern) for fixed in FIXED_SETTINGS)
    }


def short_text(value: object) -> str:
    """Return a value for a message. With aliases, a few bytes of YAML can print as gigabytes."""
    if value is None or isinstance(value, bool | int | float | str):
        text = value if isinstance(value, str) else repr(value)
        return text[:80]
    return f"a {type(value).__name__}"


def _is_one_of(value: object, allowed: tuple[object, ...]) -> bool:
    """Return whether a value is allowed; a list or a mapping is so only if it is empty."""
    if isinstance(value, list | dict):
        return not value
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed
    )
