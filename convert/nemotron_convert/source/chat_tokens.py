"""The prompt format that a tuned model's settings name, compared with the model card's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_convert.source.settings import short_text
from nemotron_core.errors import NemotronError
from nemotron_core.text.chat_format import CONTROL_PREFIX, ChatFormat

CARD_TOKENS = {
    "system_turn_start": CONTROL_PREFIX + "0>",
    "turn_start": CONTROL_PREFIX + "1>",
    "label_start": CONTROL_PREFIX + "2>",
    "end_of_turn": "\n",
    "end_of_name": "\n",
}
"""`data.chat_prompt_tokens` of the model card's format."""
HEADER = "conversation_header"
"""A token in whose place NeMo puts no system message, so that none can be given."""


def has_chat_tokens(settings: Mapping[str, Any]) -> bool:
    """Return whether there are `data.chat_prompt_tokens`."""
    return bool(_tokens(settings))


def other_chat_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return those of `data.chat_prompt_tokens` that are not the model card's, as text."""
    tokens = _tokens(settings)
    return {
        key: short_text(tokens[key])
        for key, card in (*CARD_TOKENS.items(), (HEADER, None))
        if tokens.get(key) is not None and tokens[key] != card
    }


def tuned_format(settings: Mapping[str, Any]) -> ChatFormat | None:
    """Return the prompt format of `data.chat_prompt_tokens`, or `None` if it is the model card's.

    It is the one in which NeMo's data set of chats (GPTSFTChatDataset) writes conversations. Raises
    `NemotronError`, without a place, if it is not known.
    """
    changed = other_chat_tokens(settings).keys() - {"label_start"}  # a chat has no labels
    if not changed:
        return None
    if HEADER in changed:
        raise NemotronError(f"{HEADER} leaves no place for system messages")
    tokens = CARD_TOKENS | {
        key: text
        for key, text in _tokens(settings).items()
        if key in CARD_TOKENS and text is not None
    }
    if odd := [key for key, text in tokens.items() if not isinstance(text, str)]:
        raise NemotronError(f"{odd[0]} is no text")
    end_of_name, end = tokens["end_of_name"], tokens["end_of_turn"]
    system_start = f"{tokens['system_turn_start']}System{end_of_name}"
    return ChatFormat(
        no_system=system_start + end,
        system_start=system_start,
        system_end=end,
        user_start=f"{tokens['turn_start']}User{end_of_name}",
        user_end=end,
        assistant_start=f"{tokens['turn_start']}Assistant{end_of_name}",
        assistant_end=end,
    )


def _tokens(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    data = settings.get("data")
    tokens = data.get("chat_prompt_tokens") if isinstance(data, dict) else None
    return tokens if isinstance(tokens, dict) else {}
