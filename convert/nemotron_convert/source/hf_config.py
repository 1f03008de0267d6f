"""The `config.json` of a Hugging Face folder, read as the configuration of a `.nemo`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemotron_convert.source.archive import Archive, read_bytes
from nemotron_convert.source.config_file import ModelSettings, settings_of
from nemotron_core.errors import NemotronError

CONFIG_NAME = "config.json"
CONFIG_LIMIT = 1 << 20
"""Largest size in bytes of the file."""
ARCHITECTURE = "NemotronForCausalLM"
FAMILY = (
    "Nemotron-4, Nemotron-Mini-4B-Instruct, Minitron-4B and Minitron-8B have this architecture; "
    "Llama-3.1-Minitron and Mistral-NeMo-Minitron have not, despite their names"
)
KEYS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "max_position_embeddings": "max_position_embeddings",
    "norm_eps": "layernorm_epsilon",
    "rope_theta": "rotary_base",
    "partial_rotary_factor": "rotary_percentage",
    "hidden_act": "activation",
}
"""Keys of transformers' `NemotronConfig`, and those of the same meaning in a `.nemo`."""
DEFAULTS = {"partial_rotary_factor": 0.5, "hidden_act": "relu2"}
"""What `NemotronConfig` takes for keys that are missing or null, where a `.nemo` has another
default."""
NO_SETTINGS = (
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "_name_or_path"),
    *("use_cache", "vocab_size", "tie_word_embeddings", "attention_bias", "mlp_bias"),
    *("rope_parameters", "rope_scaling"),
)
"""Keys that describe the folder, the tokenizer or the library, and those that are read here."""
ROPE = "rope_parameters"
"""Where transformers 5 has the keys of the rotary embedding."""
QUANTIZATION = "quantization_config"
QUANTIZED_FILE = "hf_quant_config.json"
"""ModelOpt's description of its quantization, which stands beside `config.json`."""


def read_config(archive: Archive) -> dict[str, Any]:
    """Return the content of `config.json`.

    Raises `NemotronError` if it is not a JSON object, or belongs to a model of another
    architecture, with code of its own, or with quantized weights.
    """
    where = f"{archive.path}: {CONFIG_NAME}"
    config = read_json(archive, CONFIG_NAME, limit=CONFIG_LIMIT)
    architectures = config.get("architectures") or []
    names = architectures if isinstance(architectures, list) else [architectures]
    is_nemotron = ARCHITECTURE in names or (not names and config.get("model_type") == "nemotron")
    if not is_nemotron and isinstance(config.get("architecture"), str):
        raise NemotronError(
            "this is a TensorRT-LLM checkpoint, not a Hugging Face folder",
            where=archive.path,
            remedy="`nemotron build` makes an engine of a checkpoint that `nemotron convert` wrote",
        )
    if not is_nemotron:
        found = ", ".join(map(str, names)) or config.get("model_type") or "that is not named"
        raise NemotronError(
            f"this is a model of the architecture {str(found)[:80]}, not {ARCHITECTURE}",
            where=where,
            remedy=FAMILY,
        )
    if config.get("auto_map"):
        raise NemotronError(
            "auto_map: the model has code of its own, which is not run",
            where=where,
            remedy=f"save it with transformers' own {ARCHITECTURE}",
        )
    quantization = config.get(QUANTIZATION)
    if quantization or QUANTIZED_FILE in archive.members:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise NemotronError(
            f"{QUANTIZATION}: the weights are quantized ({str(method or 'modelopt')[:40]})",
            where=where,
            remedy="convert the folder in BF16 that they were made from; --dtype fp8 makes FP8",
        )
    return config


def read_hf_settings(archive: Archive, config: Mapping[str, Any], tokenizer: str) -> ModelSettings:
    """Return the settings of `config.json`. Raises `NemotronError` that names the wrong key.

    `tokenizer` is the name of the tokenizer's file. Tied embeddings are the reader's business.
    """
    rope = config.get(ROPE)
    rope = rope if isinstance(rope, dict) else {}
    flat = DEFAULTS | {key: value for key, value in config.items() if value is not None}
    rotary = {key: rope.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    flat |= {key: value for key, value in rotary.items() if value is not None}
    from_nemo = flat.pop("kv_channels", None)  # what NeMo's exporter calls head_dim
    flat.setdefault("head_dim", from_nemo)
    raw = {KEYS.get(key, key): value for key, value in flat.items() if key not in NO_SETTINGS}
    raw |= {
        "activation": {"relu2": "squared-relu"}.get(str(flat["hidden_act"]), flat["hidden_act"]),
        "bias": bool(config.get("attention_bias") or config.get("mlp_bias")),
        "rope_scaling": _rope_kind(config),
        "normalization": "layernorm1p",
        "position_embedding_type": "rope",
        "share_embeddings_and_output_weights": False,
        "tokenizer": {"model": f"nemo:{tokenizer}"},
    }
    spelling = {new: old for old, new in KEYS.items()} | {"bias": "attention_bias or mlp_bias"}
    return settings_of(raw, f"{archive.path}: {CONFIG_NAME}", archive, "", spelling)


def read_vocab_size(archive: Archive, config: Mapping[str, Any]) -> int:
    """Return the number of rows of the embedding. Raises `NemotronError` if it is no number."""
    value = config.get("vocab_size")
    if type(value) is not int or not 0 < value < 1 << 31:
        raise NemotronError(
            f"vocab_size: expected a positive integer, got {str(value)[:80]!r}",
            where=f"{archive.path}: {CONFIG_NAME}",
        )
    return value


def _rope_kind(config: Mapping[str, Any]) -> object:
    """Return what changes the rotary embedding, or `None` if nothing does."""
    for key in (ROPE, "rope_scaling"):
        value = config.get(key)
        if isinstance(value, dict):
            value = value.get("rope_type", value.get("type", "default" if key == ROPE else value))
        if value is not None and value != "default":
            return value
    return None


def read_json(archive: Archive, name: str, *, limit: int) -> dict[str, Any]:
    """Return a JSON object. Raises `NemotronError` if the member is none or is too large."""
    try:
        content = json.loads(read_bytes(archive, name, limit=limit))
    except (ValueError, RecursionError) as error:
        raise NemotronError(f"not JSON: {error}"[:200], where=f"{archive.path}: {name}") from error
    if not isinstance(content, dict):
        raise NemotronError("not a JSON object", where=f"{archive.path}: {name}")
    return content
