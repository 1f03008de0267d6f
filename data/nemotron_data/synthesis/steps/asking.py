"""Steps that ask: answers, columns, and lists of which each item becomes a row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from nemotron_data.batch.accept import Acceptance, Rule
from nemotron_data.synthesis.asker import Reply, Stage, finish
from nemotron_data.synthesis.context import FAILED, Context, provenance
from nemotron_data.synthesis.kinds import Ask, Items
from nemotron_data.synthesis.prompts import Messages, Prompt, assistant
from nemotron_data.synthesis.tables import Row, Rows
from nemotron_data.transport.protocol import Choice

MARKED = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+(.*)$")
"""A line of a list: its mark, then the item."""


def ask(step: Ask, name: str, rows: Rows, context: Context) -> Iterator[Row]:
    """Ask each of the step's models `samples` times about each row."""
    prompt = Prompt(step.templates, f"steps.{name}")
    models = step.asked_models
    rules = [] if step.items is None else [_has_items(step.items)]
    replies = [
        context.asker.ask(
            Stage(
                name if len(models) == 1 else f"{name}.{model}",
                model,
                step.sampling.body(),
                Acceptance(step.accept, rules),
                step.attempts,
            ),
            (prompt.messages(row) for row in rows for _ in range(step.samples)),
        )
        for model in models
    ]
    for row in rows:
        messages = prompt.messages(row)
        for of_model in replies:
            for _ in range(step.samples):
                reply = next(of_model)
                if reply is None:
                    context.leave_out(name, FAILED)
                else:
                    yield from _results(step, name, row, messages, reply)
    for of_model in replies:
        finish(of_model)


def _results(step: Ask, name: str, row: Row, messages: Messages, reply: Reply) -> Iterator[Row]:
    row = row | {"provenance": provenance(row, name, reply)}
    if step.items is not None:
        for item in list_items(reply.text)[: step.items.count]:
            yield row | {step.items.column: item}
    elif step.column is not None:
        yield row | {step.column: reply.text.strip()}
    else:
        yield answered(row, messages, reply)


def answered(row: Row, messages: Messages, reply: Reply) -> Row:
    """Return a row with an answer as the last turn of its conversation."""
    return row | {
        "messages": [*messages, assistant(reply.text)],
        "answer": reply.text,
        "model": reply.model,
        "finish_reason": reply.finish_reason,
    }


def list_items(text: str) -> list[str]:
    r"""Return the items of a list in an answer.

    A JSON array of texts is one; else lines with a mark are, each with the lines without a mark
    that follow it; else all lines that are not blank.

    >>> list_items("Here you are:\n1. Why is\n   the sky blue?\n2) **What is tea?**\n\nBye!")
    ['Why is the sky blue?', 'What is tea?']
    >>> list_items('["a", "b"]')
    ['a', 'b']
    """
    found = _array(text)
    if found is None:
        found, is_open = [], False
        lines = text.splitlines()
        if not any(MARKED.match(line) for line in lines):
            found = lines
        else:
            for line in lines:
                if match := MARKED.match(line):
                    found.append(match[1])
                    is_open = True
                elif not line.strip():
                    is_open = False
                elif is_open:
                    found[-1] += f" {line.strip()}"
    items = (item.strip().strip("*").strip().strip('"“”').strip() for item in found)
    return [item for item in items if item]


def _array(text: str) -> list[str] | None:
    start, end = text.find("["), text.rfind("]")
    try:
        content = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    if isinstance(content, list) and content and all(isinstance(item, str) for item in content):
        return content
    return None


def _has_items(items: Items) -> Rule:
    least = items.least or items.count

    def rule(text: str, _choice: Choice) -> str | None:
        count = len(list_items(text))
        return None if count >= least else f"a list of fewer than {least}"

    return rule
