"""NeMo 2 folders: `weights/` and `context/`, said in the words of a `.nemo`'s `model_config.yaml`.

`context/model.yaml` is the model object as NeMo 2 has built it: `_target_` names a class, the other
keys are its arguments. Nothing is imported or built; the arguments wanted are read as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_convert.source.archive import Archive
from nemotron_core.errors import NemotronError

CONTEXT = "context/"
CONFIG_NAME = CONTEXT + "model.yaml"
WEIGHTS = "weights/"
TENSOR_PREFIX = "module."
"""Where a `.nemo` has `model.`."""

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
"""NeMo 2's argument and the same thing in a `.nemo`."""


def say_as_nemo(raw: Mapping[str, Any], archive: Archive, root: str) -> dict[str, Any]:
    """The `model_config.yaml` that a `.nemo` of this model would have.

    NemotronError if it is no language model's configuration, or there is not just one
    SentencePiece file.
    """
    where = f"{archive.path}: {root}{CONFIG_NAME}"
    config = raw.get("config")
    if not isinstance(config, dict):
        raise NemotronError("config: not there, or no mapping", where=where)
    said = {nemo: config[key] for key, nemo in KEYS.items() if key in config}
    activation = config.get("activation_func")
    name = activation.get("_target_") if isinstance(activation, dict) else activation
    if isinstance(name, str) and name.rpartition(".")[2] == "squared_relu":
        said["activation"] = "squared-relu"
    else:
        said["activation"] = str(name)[:80]
    normalization = config.get("normalization")
    said["normalization"] = normalization.lower() if isinstance(normalization, str) else None
    found = [
        member
        for member in archive.members
        if member.startswith(root + CONTEXT) and member.endswith(".model")
    ]
    if len(found) != 1:
        raise NemotronError(
            f"{len(found)} SentencePiece files (*.model) in {CONTEXT}, not one",
            where=archive.path,
            remedy="put the model's tokenizer.model there",
        )
    said["tokenizer"] = {"model": "nemo:" + found[0].removeprefix(root)}
    return said
