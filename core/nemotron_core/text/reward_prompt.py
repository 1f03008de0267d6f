"""The prompt format of Nemotron-4-340B-Reward, and the turns of a conversation that it scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from nemotron_core.errors import NemotronError
from nemotron_core.text.chat_format import CONTROL_PREFIX
from nemotron_core.text.prompt import Message, check_messages

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The one system prompt with which the model was trained, whatever a conversation's own is."""
Turns = Literal["all", "last"]
"""Which of the assistant's turns are scored."""


def render_scored(messages: Sequence[Message], *, control_prefix: str = CONTROL_PREFIX) -> str:
    r"""Return the text after whose last token the model scores the last turn of `messages`.

    >>> conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh"}]
    >>> render_scored(conversation)[-58:]
    '\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\nOh\n<extra_id_2>'

    System messages are left out: the model knows only its own one. Control pieces are as in
    `render_prompt`. There is no beginning and no end of a sequence. Raises `NemotronError` if the
    messages are no conversation, or the last one is not the assistant's.
    """
    check_scored(messages)
    prompt = f"{control_prefix}0>System\n{SYSTEM_PROMPT}\n"
    for message in messages:
        if message["role"] != "system":
            role = message["role"].capitalize()
            prompt += f"{control_prefix}1>{role}\n{message['content']}\n"
    return f"{prompt}{control_prefix}2>"


def check_scored(messages: Sequence[Message]) -> None:
    """Raise `NemotronError` unless the messages are a conversation whose end can be scored."""
    check_messages(messages)
    if messages[-1]["role"] != "assistant":
        raise NemotronError(
            f"the last message is from {messages[-1]['role']!r}",
            where=f"messages[{len(messages) - 1}]",
            remedy="a reward model scores an assistant's answer: end with the one to score",
        )


def scored_turns(messages: Sequence[Message], turns: str) -> list[Sequence[Message]]:
    """Return the conversation up to each assistant's turn that is scored, in order.

    Raises `NemotronError` if `turns` is not one of `Turns`, or the last message is not the
    assistant's.
    """
    if turns not in get_args(Turns):
        raise NemotronError(
            f"turns is {turns!r}", where="turns", remedy=f"use {' or '.join(get_args(Turns))}"
        )
    check_scored(messages)
    if turns == "last":
        return [messages]
    return [
        messages[: number + 1]
        for number, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
