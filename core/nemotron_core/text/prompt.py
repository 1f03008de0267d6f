"""Prompts of conversations, and the rules for their messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, TypedDict, cast

from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest
from nemotron_core.text.chat_format import CARD, CONTROL_PREFIX, ChatFormat

ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role not in ('system', 'user', 'assistant') -%}"
    "{{ raise_exception('unknown role ' + message.role) }}"
    "{%- endif -%}"
    "{%- if '@CONTROL@' in message.content -%}"
    "{{ raise_exception('a message contains a control piece (@CONTROL@…)') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{{- '@CONTROL@0>System' -}}"
    "{%- for message in messages if message.role == 'system' -%}"
    "{{- '\\n' + message.content -}}"
    "{%- endfor -%}"
    "{{- '\\n\\n' -}}"
    "{%- for turn in messages if turn.role != 'system' -%}"
    "{{- '@CONTROL@1>' + turn.role.capitalize() + '\\n' + turn.content + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '@CONTROL@1>Assistant\\n' -}}{%- endif -%}"
).replace("@CONTROL@", CONTROL_PREFIX)
"""The same as `render_prompt` in Jinja, for programs that render prompts themselves. Tokenizers of
Hugging Face find a control piece in any text, so it refuses messages with one."""


class Message(TypedDict):
    """One message of a conversation, with the keys of OpenAI's API."""

    role: Literal["system", "user", "assistant"]
    content: str


def render_prompt(
    messages: Sequence[Message],
    *,
    answer_follows: bool = True,
    is_continued: bool = False,
    control_prefix: str = CONTROL_PREFIX,
    chat_format: ChatFormat = CARD,
) -> str:
    r"""Return the prompt for `messages`, exactly in the format that the model was trained on.

    >>> render_prompt([{"role": "user", "content": "Hello?"}])
    '<extra_id_0>System\n\n<extra_id_1>User\nHello?\n<extra_id_1>Assistant\n'

    All system messages are lines of the one system block at the beginning; every other message is a
    turn of its own, in the order in which they come. With `answer_follows` the prompt ends where
    the answer begins. Without it the conversation is rendered as it is, for training and
    calibration; the model itself then generates `<extra_id_1>`. With `is_continued` the last
    message, which must be the assistant's, stays open, so that the model goes on with it. A model
    that was tuned on other prompts has another `chat_format`.

    A content that contains `<extra_id_1>` makes this *text* ambiguous. `Tokenizer.encode_chat`
    avoids that: it renders with a `control_prefix` that no content can contain.

    Raises `NemotronError` if the format cannot express the messages; see `check_messages`.
    """
    check_messages(messages)
    if is_continued and messages[-1]["role"] != "assistant":
        raise NemotronError(
            f"the last message is from {messages[-1]['role']!r}",
            where=f"messages[{len(messages) - 1}]",
            remedy="only an assistant's message can be continued",
        )
    part: dict[str, str] = {
        name: text.replace(CONTROL_PREFIX, control_prefix)
        for name, text in vars(chat_format).items()
    }
    system = [message["content"] for message in messages if message["role"] == "system"]
    prompt = part["no_system"]
    if system:
        prompt = part["system_start"] + "\n".join(system) + part["system_end"]
    for message in messages:
        role = message["role"]
        if role != "system":
            prompt += part[f"{role}_start"] + message["content"] + part[f"{role}_end"]
    if is_continued:
        return prompt.removesuffix(part["assistant_end"])
    if answer_follows:
        prompt += part["assistant_start"]
    return prompt


def template_hash(chat_format: ChatFormat) -> str:
    """Return the SHA-256 (hex) of a rendered conversation with every role."""
    sample: list[Message] = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    return text_digest(render_prompt(sample, chat_format=chat_format))


def parse_messages(source: str) -> list[Message]:
    """Return the messages of a JSON text. Raises `NemotronError` if they are no conversation."""
    try:
        messages = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise NemotronError(
            f"messages is not JSON: {error}",
            remedy='send a list like [{"role": "user", "content": "Hello"}]',
        ) from error
    check_messages(messages)
    return cast("list[Message]", messages)


def check_messages(messages: object) -> None:
    """Raise `NemotronError` if the prompt format cannot express the messages.

    They may come in any order; see `render_prompt`.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise NemotronError(
            "messages must be a non-empty list",
            remedy='send a list like [{"role": "user", "content": "Hello"}]',
        )
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise NemotronError(
                "a message must have exactly the keys role and content", where=where
            )
        role = message["role"]
        if role not in ROLES:
            raise NemotronError(f"unknown role {role!r}", where=where, remedy=f"use {_or(ROLES)}")
        check_text(message["content"], where=f"{where}.content")


def check_training_order(messages: object) -> None:
    """Raise `NemotronError` unless the messages are a conversation as the model was trained on.

    A system message may only come first; after it, user and assistant alternate, user first.
    """
    check_messages(messages)
    expected: tuple[str, ...] = ("system", "user")
    for number, message in enumerate(cast("Sequence[Message]", messages)):
        role = message["role"]
        if role not in expected:
            raise NemotronError(
                f"role {role!r} is out of order: expected {_or(expected)}",
                where=f"messages[{number}]",
                remedy="system may only come first, then user and assistant alternate",
            )
        expected = ("assistant",) if role == "user" else ("user",)
    if role == "system":
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
