"""Constraints on answers that a program can check, and the words that ask for them.

A constraint is a row such as ``{"kind": "at_most_words", "value": 50}``. The filter `instruction`
makes the sentence of it that a prompt needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemotron_data.rows.template import add_filter

BULLET = re.compile(r"^\s*[-*•]\s+\S")
NUMBERED = re.compile(r"^\s*\d+[.)]\s+\S")
SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")
WORD = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True)
class Constraint:
    """A kind of constraint: the sentence that asks for it, and the check of an answer."""

    sentence: str
    """With `{value}` where the value stands."""
    check: Callable[[str, Any], bool]
    value_type: type | None
    """Type of the value; `None` if there is no value."""


def _words(text: str) -> list[str]:
    return WORD.findall(text)


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def _lines(text: str, pattern: re.Pattern[str]) -> int:
    return sum(1 for line in text.splitlines() if pattern.match(line))


def _sentences(text: str) -> int:
    return len(SENTENCE_END.findall(text.strip()))


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


CONSTRAINTS: dict[str, Constraint] = {
    "at_least_words": Constraint(
        "Write at least {value} words.", lambda text, n: len(_words(text)) >= n, int
    ),
    "at_most_words": Constraint(
        "Write at most {value} words.", lambda text, n: len(_words(text)) <= n, int
    ),
    "sentences": Constraint(
        "Write exactly {value} sentences.", lambda text, n: _sentences(text) == n, int
    ),
    "paragraphs": Constraint(
        "Write exactly {value} paragraphs with a blank line between them.",
        lambda text, n: len(_paragraphs(text)) == n,
        int,
    ),
    "bullets": Constraint(
        "Use exactly {value} bullet points, each on a line that begins with a hyphen.",
        lambda text, n: _lines(text, BULLET) == n,
        int,
    ),
    "numbered": Constraint(
        "Write a numbered list of exactly {value} items.",
        lambda text, n: _lines(text, NUMBERED) == n,
        int,
    ),
    "has_word": Constraint('Use the word "{value}".', _has_word, str),
    "no_word": Constraint(
        'Do not use the word "{value}".', lambda text, word: not _has_word(text, word), str
    ),
    "begins_with": Constraint(
        'Begin your answer with "{value}".', lambda text, start: text.startswith(start), str
    ),
    "ends_with": Constraint(
        'End your answer with "{value}".', lambda text, end: text.rstrip().endswith(end), str
    ),
    "no_commas": Constraint("Use no commas.", lambda text, _: "," not in text, None),
    "lower_case": Constraint(
        "Write everything in lower case.", lambda text, _: text == text.lower(), None
    ),
    "upper_case": Constraint(
        "Write everything in capital letters.", lambda text, _: text == text.upper(), None
    ),
    "json": Constraint("Answer with JSON only.", lambda text, _: _is_json(text), None),
}
"""All kinds of constraints, by name."""


def parse_constraint(row: Any) -> tuple[Constraint, Any]:
    """Return the kind and the value of a constraint. Raises `ValueError` if it is none."""
    kind = row.get("kind") if isinstance(row, dict) else None
    constraint = CONSTRAINTS.get(kind) if isinstance(kind, str) else None
    if constraint is None:
        raise ValueError(f"no constraint: {row!r}; known kinds: {', '.join(CONSTRAINTS)}")
    value = row.get("value")
    if constraint.value_type is None:
        return constraint, None
    if not isinstance(value, constraint.value_type) or isinstance(value, bool):
        raise ValueError(
            f"the value of {kind} must be {constraint.value_type.__name__}, not {value!r}"
        )
    return constraint, value


def instruction(row: Any) -> str:
    """Return the sentence that asks for a constraint, or the sentences for a list of them.

    >>> instruction([{"kind": "no_commas"}, {"kind": "at_most_words", "value": 50}])
    'Use no commas. Write at most 50 words.'
    """
    sentences = []
    for part in row if isinstance(row, list) else [row]:
        constraint, value = parse_constraint(part)
        sentences.append(constraint.sentence.format(value=value))
    return " ".join(sentences)


def fulfilled(row: Any, answer: str) -> bool:
    """Return whether an answer fulfils a constraint. Raises `ValueError` if it is none."""
    constraint, value = parse_constraint(row)
    return constraint.check(answer.strip(), value)


add_filter("instruction", instruction)
