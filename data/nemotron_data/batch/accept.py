"""The rules by which a run accepts an answer, as `--accept` names them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_data.extra import require
from nemotron_data.transport.protocol import Answer, Choice

ANY = "any"
"""The rule that accepts every answer, also an empty one and one that was cut off."""
ENTRY_POINTS = "nemotron.accept"
"""Group of entry points with predicates, each a function of an answer's text."""
Rule = Callable[[str, Choice], "str | None"]
"""Returns the reason against a choice with its text, or `None`."""


class Acceptance:
    """Rules that every choice of an answer must fulfil.

    Each rule is `any`, `finish_reason=REASON[,REASON…]`, `min_length=CHARACTERS`, `regex=PATTERN`
    (somewhere in the text), `json`, `schema=FILE` (a JSON schema of the text) or
    `python=MODULE:FUNCTION` or `python=NAME` of an entry point: a function that gets the text and
    returns whether it is good. Unless `any` is there, empty answers and chats that were cut off are
    not accepted either. `more` are rules that have no name on the command line. Raises
    `NemotronError` if a rule is none.
    """

    def __init__(self, rules: Sequence[str] = (), more: Sequence[Rule] = ()) -> None:
        self._rules = [*(_parse(rule) for rule in rules if rule != ANY), *more]
        if ANY not in rules:
            own_reasons = any(rule.startswith("finish_reason=") for rule in rules)
            self._rules[:0] = [_not_empty] if own_reasons else [_not_empty, _not_cut]

    def reason_against(self, answer: Answer) -> str | None:
        """Return why an answer is not accepted, in a few words, or `None` if it is."""
        if not answer.choices and self._rules:
            return "no choice"
        for choice in answer.choices:
            text = _text(choice)
            for rule in self._rules:
                if reason := rule(text, choice):
                    return reason
        return None


def _text(choice: Choice) -> str:
    content = choice.text if choice.message is None else choice.message.content
    if isinstance(content, list):  # the parts of a message
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _not_empty(text: str, choice: Choice) -> str | None:
    message = choice.message
    if text.strip() or (message is not None and (message.tool_calls or message.function_call)):
        return None
    return "empty"


def _not_cut(_text: str, choice: Choice) -> str | None:
    """Refuse a chat that max_tokens cut off; the completion of a prompt has no end of its own."""
    return "cut off" if choice.finish_reason == "length" and choice.message is not None else None


def _parse(rule: str) -> Rule:
    name, _equals, value = rule.partition("=")
    if name not in RULES or (bool(value) is (name == "json")):
        raise NemotronError(
            "not a rule for answers",
            where=f"--accept {rule}",
            remedy=f"one of any, {', '.join(RULES)}; all but any and json with =VALUE",
        )
    try:
        return RULES[name](value)
    except (ValueError, OSError, re.error) as error:
        raise NemotronError(str(error), where=f"--accept {rule}") from error


def _finish_reason(value: str) -> Rule:
    reasons = value.split(",")
    return lambda _text, choice: (
        None if choice.finish_reason in reasons else f"finish_reason {choice.finish_reason}"
    )


def _min_length(value: str) -> Rule:
    least = int(value)
    return lambda text, _choice: None if len(text) >= least else "too short"


def _regex(value: str) -> Rule:
    pattern = re.compile(value)
    return lambda text, _choice: None if pattern.search(text) else "no match of the pattern"


def _json(_value: str) -> Rule:
    def rule(text: str, _choice: Choice) -> str | None:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return "not JSON"
        return None

    return rule


def _schema(value: str) -> Rule:
    library: Any = require("jsonschema")
    schema = json.loads(Path(value).read_text(encoding="utf-8"))
    validator_class = library.validators.validator_for(schema)
    try:
        validator_class.check_schema(schema)
    except library.SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.message}") from error
    validator = validator_class(schema)

    def rule(text: str, _choice: Choice) -> str | None:
        try:
            return None if validator.is_valid(json.loads(text)) else "against the schema"
        except (ValueError, RecursionError):
            return "not JSON"

    return rule


def _python(value: str) -> Rule:
    where = f"--accept python={value}"
    module, colon, name = value.partition(":")
    try:
        if colon:
            predicate = getattr(import_module(module), name)
        else:
            points = entry_points(group=ENTRY_POINTS, name=value)
            if not points:
                raise ValueError(f"no entry point {value!r} in the group {ENTRY_POINTS}")
            predicate = next(iter(points)).load()
    except Exception as error:  # code of the user's, which may raise anything
        raise NemotronError(
            f"cannot load: {type(error).__name__}: {error}",
            where=where,
            remedy="name an installed module, or set PYTHONPATH to the folder of yours",
        ) from error

    def rule(text: str, _choice: Choice) -> str | None:
        try:
            return None if predicate(text) else f"{value} says no"
        except Exception as error:
            raise NemotronError(
                f"the function raises {type(error).__name__}: {error}",
                where=where,
                remedy="correct it and run the same command again",
            ) from error

    return rule


RULES: dict[str, Callable[[str], Rule]] = {
    "finish_reason": _finish_reason,
    "min_length": _min_length,
    "regex": _regex,
    "json": _json,
    "schema": _schema,
    "python": _python,
}
"""Functions that make a rule of its value, by its name."""
