"""The prompt format that a tuned model's settings name, compared with the model card's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_convert.source.settings import short_text
from nemotron_core.text.prompt import CONTROL_PREFIX

CARD = {
    "system_turn_start": CONTROL_PREFIX + "0>",
    "turn_start": CONTROL_PREFIX + "1>",
    "label_start": CONTROL_PREFIX + "2>",
    "end_of_turn": "\n",
    "end_of_name": "\n",
}
"""`data.chat_prompt_tokens` of the format that every lane and the Hugging Face folder have."""


def other_chat_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return those of `data.chat_prompt_tokens` that are not the model card's, as text."""
    data = settings.get("data")
    tokens = data.get("chat_prompt_tokens") if isinstance(data, dict) else None
    if not isinstance(tokens, dict):
        return {}
    return {
        key: short_text(tokens[key])
        for key, card in CARD.items()
        if tokens.get(key) is not None and tokens[key] != card
    }
