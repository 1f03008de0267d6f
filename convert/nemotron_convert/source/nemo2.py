"""The layout of a NeMo 2 folder, and its `model.yaml` translated to a `.nemo`'s configuration.

`context/model.yaml` describes the model object that NeMo 2 built: `_target_` names a class, the
other keys are its arguments. Nothing is imported or built; the arguments are read as plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_convert.source.archive import Archive
from nemotron_core.errors import NemotronError

CONTEXT = "context/"
CONFIG_NAME = CONTEXT + "model.yaml"
WEIGHTS = "weights/"
KEYS = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_query_groups",
    "kv_channels": "kv_channels",
    "seq_length": "encoder_seq_length",
    "layernorm_epsilon": "layernorm_epsilon",
    "rotary_percent": "rotary_percentage",
    "rotary_base": "rotary_base",
    "layernorm_zero_centered_gamma": "layernorm_zero_centered_gamma",
    "position_embedding_type": "position_embedding_type",
    "share_embeddings_and_output_weights": "share_embeddings_and_output_weights",
    "add_bias_linear": "bias",
}
"""NeMo 2's arguments and the keys of the same meaning in a `.nemo`'s `model_config.yaml`."""

LORA_DEFAULT = 32
"""Default of `dim` and of `alpha`."""
LORA_TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
"""Default of `target_modules`."""
METADATA = WEIGHTS + "adapter_metadata.json"
"""The file that names an adapter's base model."""


def translate_config(raw: Mapping[str, Any], archive: Archive, root: str) -> dict[str, Any]:
    """Return the `model_config.yaml` that a `.nemo` of this model would have.

    Raises `NemotronError` if `raw` is not a language model's configuration, or if there is not
    exactly one SentencePiece file.
    """
    where = f"{archive.path}: {root}{CONFIG_NAME}"
    config = raw.get("config")
    if not isinstance(config, dict):
        raise NemotronError("config: not there, or no mapping", where=where)
    named = ((str(key), value) for key, value in config.items())
    translated: dict[str, Any] = {KEYS.get(key, key): value for key, value in named}
    activation = translated.pop("activation_func", None)
    name = activation.get("_target_") if isinstance(activation, dict) else activation
    is_squared_relu = isinstance(name, str) and name.rpartition(".")[2] == "squared_relu"
    translated["activation"] = "squared-relu" if is_squared_relu else name
    normalization = config.get("normalization")
    translated["normalization"] = normalization.lower() if isinstance(normalization, str) else None
    tokenizers = [
        member
        for member in archive.members
        if member.startswith(root + CONTEXT) and member.endswith(".model")
    ]
    transform = raw.get("model_transform")
    if len(tokenizers) != 1 and transform is None:  # an adapter needs none
        raise NemotronError(
            f"{len(tokenizers)} SentencePiece files (*.model) in {CONTEXT}, not one",
            where=archive.path,
            remedy="put the model's tokenizer.model there",
        )
    translated["target"] = raw.get("_target_")
    if transform is not None:
        name = transform.get("_target_") if isinstance(transform, dict) else transform
        scheme = name.rpartition(".")[2] if isinstance(name, str) else None
        translated["peft"] = {"peft_scheme": scheme}
        if isinstance(transform, dict):
            translated["peft"]["lora_tuning"] = _lora_tuning(transform)
    if len(tokenizers) == 1:
        translated["tokenizer"] = {"model": "nemo:" + tokenizers[0].removeprefix(root)}
    return translated


def _lora_tuning(transform: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `lora_tuning` that a `.nemo` would have for this transform.

    The defaults are those of NeMo 2's class `LoRA`.
    """
    name = transform.get("_target_")
    is_canonical = isinstance(name, str) and name.endswith("CanonicalLoRA")
    modules = transform.get("target_modules", list(LORA_TARGETS))
    return {
        "adapter_dim": transform.get("dim", LORA_DEFAULT),
        "alpha": transform.get("alpha", LORA_DEFAULT),
        "target_modules": [] if is_canonical else modules,
        "variant": "canonical" if is_canonical else "nemo",
    }
