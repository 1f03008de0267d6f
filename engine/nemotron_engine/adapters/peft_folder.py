"""A LoRA adapter in the layout of the library PEFT, checked before an engine loads it.

Engines end for everyone, or compute something else without a word, when an adapter does not fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nemotron_core.errors import NemotronError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_rslora": (True, False, None),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False, None),
}
"""Values of the configuration with which an adapter is nothing but two factors of some weights."""
TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight"
)


def check_peft_folder(folder: Path, model: Path, max_rank: int) -> None:
    """Raise `NemotronError` if an adapter does not fit the Hugging Face folder `model`."""
    config = _read_json(folder / CONFIG_NAME, "it is no LoRA adapter in PEFT's layout")
    for key, values in PLAIN.items():
        if config.get(key) not in values:
            raise NemotronError(
                f"{key} is {config.get(key)!r}, which is not served by name",
                where=folder / CONFIG_NAME,
                remedy="merge it into the model",
            )
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and 1 <= rank <= max_rank for rank in ranks):
        raise NemotronError(
            f"its rank is {ranks[0]}, and the engine takes up to {max_rank}",
            where=folder / CONFIG_NAME,
            remedy="raise lora.max_rank in the profile and build again",
        )
    for name, shape in _shapes(folder / WEIGHTS_NAME).items():
        _check_tensor(name, shape, _read_json(model / "config.json", "no model"), folder)


def _check_tensor(name: str, shape: list[int], model: dict[str, Any], folder: Path) -> None:
    match = TENSOR.fullmatch(name)
    sizes = _sizes(model)
    if match is None or match[2] not in sizes or int(match[1]) >= model["num_hidden_layers"]:
        raise NemotronError(
            f"its tensor {name} belongs to no projection of this model",
            where=folder / WEIGHTS_NAME,
            remedy="train it on attention and MLP projections only, or merge it into the model",
        )
    inner, outer = sizes[match[2]]
    # A is [rank, in], B is [out, rank].
    size, expected = (shape[1:], inner) if match[3] == "A" else (shape[:1], outer)
    if len(shape) != 2 or size != [expected]:
        raise NemotronError(
            f"its tensor {name} has the shape {shape}, and the model's size there is {expected}",
            where=folder / WEIGHTS_NAME,
            remedy="use an adapter of this model",
        )


def _sizes(model: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the numbers of inputs and of outputs of each projection of a Nemotron."""
    hidden, heads = model["hidden_size"], model["num_attention_heads"]
    head = model.get("head_dim") or hidden // heads
    kv = (model.get("num_key_value_heads") or heads) * head
    return {
        "q_proj": (hidden, heads * head),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (heads * head, hidden),
        "up_proj": (hidden, model["intermediate_size"]),
        "down_proj": (model["intermediate_size"], hidden),
    }


def _shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes of a safetensors file's tensors. Pickled weights are never read."""
    try:
        with safe_open(path, "np") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise NemotronError(
            f"cannot read its weights: {error}", where=path, remedy="save it as safetensors"
        ) from error


def _read_json(path: Path, meaning: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise NemotronError(f"{meaning}: {error}", where=path) from error
    if not isinstance(content, dict):
        raise NemotronError(meaning, where=path)
    return content
