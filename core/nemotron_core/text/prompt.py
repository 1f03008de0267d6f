"""The prompt format of Nemotron-4-Instruct, and the rules for the messages that fill it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, TypedDict, cast

from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest

CONTROL_PREFIX = "<extra_id_"
"""How every control piece of this model begins: `<extra_id_0>` opens the prompt, `<extra_id_1>`
opens each turn and so ends the one before it."""

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One message of a conversation, as OpenAI's API spells it."""

    role: Literal["system", "user", "assistant"]
    content: str


def render_prompt(
    messages: Sequence[Message],
    *,
    answer_follows: bool = True,
    control_prefix: str = CONTROL_PREFIX,
) -> str:
    r"""The prompt for `messages`, exactly as the model was trained on it.

    >>> render_prompt([{"role": "user", "content": "Hello?"}])
    '<extra_id_0>System\n\n<extra_id_1>User\nHello?\n<extra_id_1>Assistant\n'

    With `answer_follows` the last message must be the user's and the prompt ends where the answer
    begins. Without it the conversation is rendered as it stands, for training and calibration; the
    model itself then writes `<extra_id_1>`.

    A content that contains `<extra_id_1>` makes this *text* ambiguous. `Tokenizer.encode_chat` is
    not fooled: it renders with a `control_prefix` that no content can contain.
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
    """SHA-256 of a conversation with every role, as the template renders it."""
    sample: list[Message] = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    return text_digest(render_prompt(sample))


def parse_messages(source: str) -> list[Message]:
    """Messages from JSON text, checked for generation; NemotronError says what is wrong where."""
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
    """Refuse what the prompt format cannot express.

    A system message may only come first; after it user and assistant alternate, user first. The
    template has no place for anything else, so other orders would be answered by a model that
    never saw them.
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
    """Refuse text that cannot travel as UTF-8 through every engine: no lone surrogates, no NUL."""
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
