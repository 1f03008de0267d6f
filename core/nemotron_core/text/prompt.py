"""The prompt format of Nemotron-4-Instruct, and the rules for its messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, TypedDict, cast

from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest

CONTROL_PREFIX = "<extra_id_"
"""Prefix of every control piece of this model. `<extra_id_0>` opens the prompt; `<extra_id_1>`
opens each turn and thereby ends the turn before it."""

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One message of a conversation, with the keys of OpenAI's API."""

    role: Literal["system", "user", "assistant"]
    content: str


def render_prompt(
    messages: Sequence[Message],
    *,
    answer_follows: bool = True,
    control_prefix: str = CONTROL_PREFIX,
) -> str:
    r"""Return the prompt for `messages`, exactly in the format that the model was trained on.

    >>> render_prompt([{"role": "user", "content": "Hello?"}])
    '<extra_id_0>System\n\n<extra_id_1>User\nHello?\n<extra_id_1>Assistant\n'

    With `answer_follows` the last message must be the user's, and the prompt ends where the answer
    begins. Without it the conversation is rendered as it is, for training and calibration; the
    model itself then generates `<extra_id_1>`.

    A content that contains `<extra_id_1>` makes this *text* ambiguous. `Tokenizer.encode_chat`
    avoids that: it renders with a `control_prefix` that no content can contain.

    Raises `NemotronError` if the format cannot express the messages; see `check_messages`.
    """
    check_messages(messages, answer_follows=answer_follows)
    system = ""
    turns = list(messages)
    if turns[0]["role"] == "system":
        system = "\n" + turns.pop(0)["content"]
    prompt = f"{control_prefix}0>System{system}\n\n"
    for turn in turns:
        prompt += f"{control_prefix}1>{turn['role'].capitalize()}\n{turn['content']}\n"
    if answer_follows:
        prompt += f"{control_prefix}1>Assistant\n"
    return prompt


def template_hash() -> str:
    """Return the SHA-256 (hex) of a rendered conversation with every role."""
    sample: list[Message] = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    return text_digest(render_prompt(sample))


def parse_messages(source: str) -> list[Message]:
    """Return the messages of a JSON text. Raises `NemotronError` if they cannot be answered."""
    try:
        messages = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise NemotronError(
            f"messages is not JSON: {error}",
            remedy='send a list like [{"role": "user", "content": "Hello"}]',
        ) from error
    check_messages(messages, answer_follows=True)
    return cast("list[Message]", messages)


def check_messages(messages: object, *, answer_follows: bool) -> None:
    """Raise `NemotronError` if the prompt format cannot express the messages.

    A system message may only come first; after it, user and assistant alternate, user first. The
    model was trained on no other order. With `answer_follows` the last message must be the user's.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise NemotronError(
            "messages must be a non-empty list",
            remedy='send a list like [{"role": "user", "content": "Hello"}]',
        )
    expected: tuple[str, ...] = ("system", "user")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise NemotronError(
                "a message must have exactly the keys role and content", where=where
            )
        role = message["role"]
        if role not in ROLES:
            raise NemotronError(f"unknown role {role!r}", where=where, remedy=f"use {_or(ROLES)}")
        if role not in expected:
            raise NemotronError(
                f"role {role!r} is out of order: expected {_or(expected)}",
                where=where,
                remedy="system may only come first, then user and assistant alternate",
            )
        check_text(message["content"], where=f"{where}.content")
        expected = ("assistant",) if role == "user" else ("user",)
    if answer_follows and expected != ("assistant",):
        raise NemotronError(
            f"the last message is from {role!r}",
            where=f"messages[{len(messages) - 1}]",
            remedy="end with a user message for the model to answer",
        )
    if messages[-1]["role"] == "system":
        raise NemotronError("there is only a system message", remedy="add a user message")


def check_text(text: object, *, where: str) -> None:
    """Raise `NemotronError` unless `text` is a string without NUL and lone surrogates.

    Other text cannot pass through every engine as UTF-8.
    """
    if not isinstance(text, str):
        raise NemotronError(f"expected a string, got {type(text).__name__}", where=where)
    if "\0" in text:
        raise NemotronError("the text contains a NUL character", where=where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NemotronError(
            f"the text is not valid Unicode: lone surrogate at character {error.start}",
            where=where,
        ) from error


def _or(words: Sequence[str]) -> str:
    return " or ".join(words)
