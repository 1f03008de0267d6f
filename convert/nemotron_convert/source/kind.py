"""The kinds of `.nemo` files, told apart by their configuration and the names of their tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

from nemotron_convert.tensor_map import EMBEDDING
from nemotron_core.errors import NemotronError


class Kind(str, Enum):
    """What a `.nemo` is. The value is its name for a person."""

    BASE = "base model"
    SFT = "model tuned on instructions (SFT)"
    PREFERENCE = "model tuned on preferences (DPO, RPO, PPO)"
    LORA = "LoRA adapter"
    P_TUNING = "P-tuning prompt"
    IA3 = "IA3 adapter"
    ADAPTER = "bottleneck adapter"
    SELECTIVE = "selectively tuned part of a model"
    REWARD = "reward model"


NOT_CONVERTED = {
    Kind.LORA: "merge it into its base model and convert the merged model",
    Kind.P_TUNING: "convert its base model, and put the instructions into the prompt",
    Kind.IA3: "merge it into its base model and convert the merged model",
    Kind.ADAPTER: "it cannot be merged, because it is not linear; convert its base model",
    Kind.SELECTIVE: "put its tensors into its base model and convert that",
    Kind.REWARD: "serve it with NeMo-Aligner's reward server; its scores come from a head that a "
    "checkpoint has no place for",
}
"""The kinds that cannot be converted, with where to go."""

SCHEMES = {
    "lora": Kind.LORA,
    "qlora": Kind.LORA,
    "ptuning": Kind.P_TUNING,
    "ia3": Kind.IA3,
    "adapter": Kind.ADAPTER,
    "selective": Kind.SELECTIVE,
}
"""The kinds by `peft.peft_scheme`."""
TENSORS = {
    ".lora_": Kind.LORA,
    ".adapter.linear_": Kind.LORA,
    ".adapter.adapter_": Kind.LORA,
    "ptuning_adapter.": Kind.P_TUNING,
    "_infused_adapter.": Kind.IA3,
    ".adapter_layer.adapter_": Kind.ADAPTER,
    "model.rm_head.": Kind.REWARD,
}
"""The kinds by a part of the name of a tensor that only they have."""
TARGETS = {
    "reward": Kind.REWARD,
    **dict.fromkeys(("dpo", "rpo", "kto", "ppo", "spin", "rs_actor"), Kind.PREFERENCE),
    **dict.fromkeys(("sft", "steerlm"), Kind.SFT),
}
"""The kinds by a part of `target`, the class that saved the file."""


def find_kind(settings: Mapping[str, Any], names: Collection[str]) -> Kind:
    """Return the kind of a `.nemo` with these settings and these tensors.

    A file that holds adapters is one, whatever its settings say. Settings that name an adapter
    count only if there are no whole weights, because a merged model may keep them.
    """
    for part, kind in TENSORS.items():
        if any(part in name for name in names):
            return kind
    if settings.get("reward_model_type") is not None:
        return Kind.REWARD
    peft = settings.get("peft")
    scheme = peft.get("peft_scheme") if isinstance(peft, dict) else None
    if isinstance(scheme, str) and EMBEDDING not in names:
        for name in scheme.split(","):
            if kind_of_scheme := SCHEMES.get(name.strip().lower()):
                return kind_of_scheme
    target = settings.get("target")
    words = target.lower() if isinstance(target, str) else ""
    for part, kind in TARGETS.items():
        if part in words or (isinstance(settings.get(part), dict) and part != "reward"):
            return kind
    data = settings.get("data")
    if isinstance(data, dict) and isinstance(data.get("chat_prompt_tokens"), dict):
        return Kind.SFT
    return Kind.BASE


def require_convertible(kind: Kind, where: object) -> None:
    """Raise `NemotronError`, which says where to go, if this kind cannot be converted."""
    if remedy := NOT_CONVERTED.get(kind):
        article = "an" if kind.value[0] in "AEIO" else "a"
        raise NemotronError(
            f"this is {article} {kind.value}, which this version does not convert",
            where=where,
            remedy=remedy,
        )
