"""The settings of a LoRA: its rank, its scale and what it changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nemotron_convert.source.adapter_map import TARGET_GROUPS
from nemotron_convert.source.config_file import ModelSettings
from nemotron_convert.source.settings import short_text
from nemotron_core.errors import NemotronError

RANK_REFERENCE = re.compile(r"\$\{[\w.]*\badapter_dim\}")
"""OmegaConf's way to write the value of `adapter_dim`."""
LARGEST_RANK = 1 << 16


@dataclass(frozen=True)
class LoraSettings:
    """The settings that decide what a LoRA does."""

    rank: int
    alpha: float | None
    """Without it, the scale is 1."""
    variant: str
    targets: tuple[str, ...]
    """Linear layers by NeMo's names; empty if the file has whatever it has."""
    layers: frozenset[int] | None
    """Layers, counted from 0; without, all."""

    @property
    def scale(self) -> float:
        """The factor of B · A in the forward pass: alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def __str__(self) -> str:
        alpha = "no alpha" if self.alpha is None else f"alpha {self.alpha:g}"
        return f"rank {self.rank}, {alpha}, scale {self.scale:g}, {self.variant}"


def read_lora_settings(settings: ModelSettings, where: object) -> LoraSettings:
    """Return the settings of a LoRA. Raises `NemotronError` that names the one that is wrong."""
    peft = settings.raw.get("peft")
    tuning = peft.get("lora_tuning") if isinstance(peft, dict) else None
    if not isinstance(tuning, dict):
        raise _wrong("peft.lora_tuning", tuning, "no mapping", where)
    rank = tuning.get("adapter_dim")
    if type(rank) is not int or not 0 < rank <= LARGEST_RANK:
        raise _wrong("adapter_dim", rank, "no rank", where)
    if tuning.get("weight_tying"):
        raise NemotronError(
            "the layers of this LoRA share their factors (weight_tying), which cannot be merged",
            where=where,
            remedy="tune it again without weight_tying",
        )
    return LoraSettings(
        rank,
        _alpha(tuning.get("alpha"), rank, where),
        str(tuning.get("variant") or "nemo")[:20],
        _targets(tuning.get("target_modules", ["attention_qkv"]), where),
        _layers(tuning.get("layer_selection"), where),
    )


def _alpha(value: object, rank: int, where: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) and RANK_REFERENCE.fullmatch(value):
        return float(rank)
    if type(value) not in (int, float) or not 0 < value < 1e9:  # type: ignore[operator]
        raise _wrong("alpha", value, "no positive number", where)
    return float(value)  # type: ignore[arg-type]


def _targets(value: object, where: object) -> tuple[str, ...]:
    """Return the names of linear layers; empty where they hold wildcards, as NeMo 2 allows."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _wrong("target_modules", value, "no list of names", where)
    if any("*" in name or "." in name for name in names):
        return ()
    return tuple(dict.fromkeys(part for name in names for part in TARGET_GROUPS.get(name, [name])))


def _layers(value: object, where: object) -> frozenset[int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(n) is int and n > 0 for n in value):
        raise _wrong("layer_selection", value, "no list of layers, counted from 1", where)
    return frozenset(n - 1 for n in value)


def _wrong(key: str, value: object, fault: str, where: object) -> NemotronError:
    text = short_text(value) if not isinstance(value, Mapping | list) else type(value).__name__
    return NemotronError(f"{key}: {text} is {fault}", where=where)
