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
    SFT = "instruct model, tuned on examples (SFT, SteerLM)"
    PREFERENCE = "instruct model, tuned on preferences (DPO, RPO, PPO)"
    LORA = "LoRA adapter"
    IA3 = "IA3 adapter"
    P_TUNING = "P-tuning prompt"
    ADAPTER = "bottleneck adapter"
    SELECTIVE = "selectively tuned part of a model"
    REWARD = "reward model"

    @property
    def with_article(self) -> str:
        """The name with its indefinite article."""
        return f"an {self.value}" if self.value[0] in "AEIOi" else f"a {self.value}"


ADAPTERS = (Kind.LORA, Kind.IA3, Kind.P_TUNING)
"""The kinds that are converted together with a base model."""
REFUSED = {
    Kind.ADAPTER: "it cannot be merged, because it is not linear; convert its base model",
    Kind.SELECTIVE: "put its tensors into its base model and convert that",
}
"""The kinds that cannot be converted, with where to go. All other kinds are whole models."""

SCHEMES = {
    "lora": Kind.LORA,
    "qlora": Kind.LORA,
    "canonicallora": Kind.LORA,
    "dora": Kind.LORA,
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


def require_whole(kind: Kind, where: object, base: str | None = None) -> None:
    """Raise `NemotronError`, which says what to run, unless this is a whole model.

    `base` is the base model that an adapter names.
    """
    if kind in ADAPTERS:
        verb = "convert it with its base model" if kind is Kind.P_TUNING else "merge it"
        command = f"nemotron convert --base {base or 'BASE.nemo'} {where} -o CHECKPOINT"
        raise NemotronError(
            f"this is {kind.with_article}, not a whole model",
            where=where,
            remedy=f"{verb}: {command}",
        )
    _require_usable(kind, where)


def require_adapter(kind: Kind, where: object) -> None:
    """Raise `NemotronError`, which says what to run, unless this is converted with a model."""
    _require_usable(kind, where)
    if kind not in ADAPTERS:
        raise NemotronError(
            f"this is {kind.with_article}, which is whole and is not merged",
            where=where,
            remedy=f"convert it by itself, without --base: nemotron convert {where} -o CHECKPOINT",
        )


def _require_usable(kind: Kind, where: object) -> None:
    if remedy := REFUSED.get(kind):
        raise NemotronError(
            f"this is {kind.with_article}, which this version does not convert",
            where=where,
            remedy=remedy,
        )
