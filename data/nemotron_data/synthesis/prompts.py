"""What a row says to a model: messages made of templates, and conversations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_data.rows.template import Expression, add_filter, parse_expression, parse_template
from nemotron_data.rows.template import render as render_template
from nemotron_data.synthesis.tables import Row

Messages = list[dict[str, str]]
NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


def transcript(messages: Sequence[dict[str, str]]) -> str:
    r"""Return a conversation as a text for a model that reads it.

    >>> transcript([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])
    'User: Hi\n\nAssistant: Hello!'
    """
    return "\n\n".join(
        f"{NAMES.get(turn['role'], turn['role'])}: {turn['content']}" for turn in messages
    )


add_filter("transcript", transcript)


class Text:
    """A template of a step. `where` names it in errors."""

    def __init__(self, template: str, where: str) -> None:
        self._template, self._where = parse_template(template), where

    def of(self, row: Row) -> str:
        """Return the text for a row. Raises `NemotronError` if it cannot be made."""
        try:
            return render_template(self._template, row)
        except ValueError as error:
            raise failure(error, self._where, row) from error


class Value:
    """An expression of a step. `where` names it in errors."""

    def __init__(self, expression: str, where: str) -> None:
        self._expression: Expression = parse_expression(expression)
        self._where = where

    def of(self, row: Row) -> Any:
        """Return the value for a row. Raises `NemotronError` if it cannot be made."""
        try:
            return self._expression(row)
        except ValueError as error:
            raise failure(error, self._where, row) from error

    def number(self, row: Row) -> float:
        """Return the value for a row, which must be a number."""
        value = self.of(row)
        try:
            number = float(value) if isinstance(value, bool | int | float) else math.nan
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        raise failure(ValueError(f"{str(value)[:100]} is no finite number"), self._where, row)


class Prompt:
    """The messages of a prompt: each made of a template, or `None` for the row's conversation."""

    def __init__(self, templates: Sequence[tuple[str, str]] | None, where: str) -> None:
        self._texts = (
            None if templates is None else [(role, Text(text, where)) for role, text in templates]
        )
        self._where = where

    def messages(self, row: Row) -> Messages:
        """Return the messages for a row. Raises `NemotronError` if the last one is empty."""
        if self._texts is None:
            return self._asked(row)
        messages = [{"role": role, "content": text.of(row)} for role, text in self._texts]
        if not messages[-1]["content"].strip():
            raise failure(ValueError("the prompt is empty"), self._where, row)
        return messages

    def _asked(self, row: Row) -> Messages:
        """Return the row's conversation up to the user's last message."""
        messages = list(row.get("messages") or ())
        while messages and messages[-1].get("role") == "assistant":
            messages.pop()
        if not messages:
            raise failure(ValueError("the row has no messages of a user"), self._where, row)
        return messages


def conversation(row: Row, where: str) -> Messages:
    """Return the conversation of a row, which ends with an answer.

    Raises `NemotronError` if there is none.
    """
    messages = row.get("messages")
    try:
        if (
            messages
            and messages[-1]["role"] == "assistant"
            and all(turn["role"] in NAMES and isinstance(turn["content"], str) for turn in messages)
        ):
            return list(messages)
    except (LookupError, TypeError):
        pass
    reason = f"the row has no messages of {', '.join(NAMES)} that end with an answer"
    raise failure(ValueError(reason), where, row)


def failure(error: Exception, where: str, row: Row) -> NemotronError:
    """Return an error that names the step and the columns of the row."""
    columns = ", ".join(map(str, row))[:200]
    return NemotronError(f"{error} (columns: {columns})", where=where)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
