"""A LoRA adapter in the layout of the library PEFT, checked before an engine loads it.

Engines end for everyone, or compute something else without a word, when an adapter does not fit.
"""

from __future__ import annotations

import json
import math
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
    r"base_model\.model\.model\.layers\.(0|[1-9][0-9]{0,5})\.([a-z_]+\.[a-z_]+)\.lora_([AB])\.weight"
)
PROJECTIONS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("up_proj", "down_proj"), "mlp"),
}
"""The weights of a layer that an adapter may change, and the part that each belongs to."""
Weight = tuple[int, str]
"""A weight of the model that an adapter changes: its layer, and its name there."""


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
    ranks = _numbers(config, "r", "rank_pattern")
    if not all(isinstance(rank, int) and 1 <= rank <= max_rank for rank in ranks):
        raise NemotronError(
            f"its ranks are {ranks}, and the engine takes 1 to {max_rank}",
            where=folder / CONFIG_NAME,
            remedy="raise lora.max_rank in the profile and build again",
        )
    alphas = _numbers(config, "lora_alpha", "alpha_pattern")
    if not all(0 < alpha < math.inf for alpha in alphas):
        raise NemotronError(
            f"lora_alpha is {alphas}",
            where=folder / CONFIG_NAME,
            remedy="write the number with which the adapter was trained",
        )
    sizes = _sizes(_read_json(model / "config.json", "it is no Hugging Face folder"))
    _check_factors(_shapes(folder / WEIGHTS_NAME), sizes, set(ranks), folder / WEIGHTS_NAME)


def _check_factors(
    shapes: Mapping[str, list[int]],
    sizes: Mapping[Weight, tuple[int, int]],
    ranks: set[float],
    path: Path,
) -> None:
    """Raise `NemotronError` unless the tensors are pairs of factors of the model's weights."""
    factors: dict[str, dict[Weight, int]] = {"A": {}, "B": {}}
    for name, shape in shapes.items():
        match = TENSOR.fullmatch(name)
        weight = (int(match[1]), match[2]) if match else (-1, "")
        if match is None or weight not in sizes:
            raise NemotronError(
                f"its tensor {name} belongs to no projection of this model",
                where=path,
                remedy="train it on attention and MLP projections only, or merge it into the model",
            )
        inner, outer = sizes[weight]
        # A is [rank, in], B is [out, rank].
        expected, axis = (inner, 0) if match[3] == "A" else (outer, 1)
        if len(shape) != 2 or shape[1 - axis] != expected or shape[axis] not in ranks:
            raise NemotronError(
                f"its tensor {name} has the shape {shape}, and the model's size there is"
                f" {expected}",
                where=path,
                remedy="use an adapter of this model, with the rank that its configuration says",
            )
        factors[match[3]][weight] = shape[axis]
    if not shapes or factors["A"] != factors["B"]:
        raise NemotronError(
            "its factors A and B are not pairs" if shapes else "it has no tensors",
            where=path,
            remedy="save it again",
        )


def _numbers(config: Mapping[str, Any], key: str, pattern: str) -> list[float]:
    """Return a number of the configuration and its exceptions; what is no number becomes NaN."""
    exceptions = config.get(pattern) or {}
    values = [config.get(key), *(exceptions.values() if isinstance(exceptions, dict) else [None])]
    return [value if type(value) in (int, float) else math.nan for value in values]


def _sizes(model: dict[str, Any]) -> dict[Weight, tuple[int, int]]:
    """Return the numbers of inputs and of outputs of each projection of a Nemotron."""
    hidden, heads = model["hidden_size"], model["num_attention_heads"]
    head = model.get("head_dim") or hidden // heads
    kv = (model.get("num_key_value_heads") or heads) * head
    sizes = {
        "q_proj": (hidden, heads * head),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (heads * head, hidden),
        "up_proj": (hidden, model["intermediate_size"]),
        "down_proj": (model["intermediate_size"], hidden),
    }
    names = {name: f"{part}.{name}" for name, part in PROJECTIONS.items()}
    layers = range(model["num_hidden_layers"])
    return {(layer, names[name]): sizes[name] for layer in layers for name in names}


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
    except (OSError, ValueError, RecursionError) as error:
        raise NemotronError(f"{meaning}: {error}", where=path) from error
    if not isinstance(content, dict):
        raise NemotronError(meaning, where=path)
    return content
