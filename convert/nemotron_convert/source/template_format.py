"""The prompt format that a chat template of others writes, read off its prompts."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_core.text.chat_format import ChatFormat
from nemotron_core.text.prompt import Message

SYSTEM, USER, ASSISTANT, LAST = "alpha", "bravo", "charlie", "delta"
"""Contents that no template changes and no format contains."""


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}  # type: ignore[typeddict-item]


_QUESTION = [_message("user", USER)]
_ANSWERED = [*_QUESTION, _message("assistant", ASSISTANT)]
PROBES: tuple[tuple[Sequence[Message], bool], ...] = (
    (_QUESTION, True),
    (_QUESTION, False),
    (_ANSWERED, False),
    ([*_ANSWERED, _message("user", LAST)], True),
    ([_message("system", SYSTEM), *_QUESTION], True),
)
"""Conversations, and whether an answer follows, whose prompts show each part of a format."""


def read_format(prompts: Sequence[str | None]) -> ChatFormat | None:
    """Return the format in which a template has written `PROBES`, or `None` if it has no such form.

    Whether it writes every conversation so is for the caller to compare.
    """
    try:
        begin, answer = _split(prompts[0], USER)
        _, user_end = _split(prompts[1], USER)
        _, _, assistant_end = _split(prompts[2], USER, ASSISTANT)
        _, _, turn, _ = _split(prompts[3], USER, ASSISTANT, LAST)
        system_start, system_end, _ = _split(prompts[4], SYSTEM, USER)
        user_start = _without_start(turn, assistant_end)
        return ChatFormat(
            no_system=_without_end(begin, user_start),
            system_start=system_start,
            system_end=_without_end(system_end, user_start),
            user_start=user_start,
            user_end=user_end,
            assistant_start=_without_start(answer, user_end),
            assistant_end=assistant_end,
        )
    except ValueError:
        return None


def _split(prompt: str | None, *contents: str) -> list[str]:
    """Return what stands around the contents. Raises `ValueError` unless each is there once."""
    parts = [prompt or ""]
    for content in contents:
        before, after = parts.pop().split(content)
        parts += [before, after]
    return parts


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError(text)
    return text[len(start) :]


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError(text)
    return text[: len(text) - len(end)]
