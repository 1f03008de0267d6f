"""The step that has a safety model judge each row, and leaves out what is unsafe."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from nemotron_data.batch.accept import ANY, Acceptance
from nemotron_data.synthesis.asker import Stage, finish
from nemotron_data.synthesis.context import FAILED, Context, provenance
from nemotron_data.synthesis.prompts import Messages, conversation
from nemotron_data.synthesis.safety import UNSAFE, Guard, read_judgement
from nemotron_data.synthesis.tables import Row, Rows

SAMPLING = {"temperature": 0.0, "max_tokens": 64}
UNREADABLE = "unreadable judgement"
"""Reason against a row about which the safety model said something else."""


def guard(step: Guard, name: str, rows: Rows, context: Context) -> Iterator[Row]:
    """Give each row that stays the column `safety`, the categories that were found and allowed."""
    settings = step.safety
    stage = Stage(name, settings.model, SAMPLING, Acceptance([ANY]))

    def parts(row: Row) -> list[Messages]:
        messages = conversation(row, f"steps.{name}.safety")
        return [messages[:-1], messages] if settings.prompt else [messages]

    replies = context.asker.ask(stage, itertools.chain.from_iterable(map(parts, rows)))
    for row in rows:
        judged = [next(replies) for _ in parts(row)]
        answered = [reply for reply in judged if reply is not None]
        if len(answered) < len(judged):
            context.leave_out(name, FAILED)
            continue
        found: set[str] = set()
        judgements = [read_judgement(reply.text) for reply in answered]
        for codes in judgements:
            found.update(codes or ())
        unsafe = found if settings.drop is None else found & {UNSAFE, *settings.drop}
        if None in judgements:
            context.leave_out(name, UNREADABLE)
        elif unsafe:
            context.leave_out(name, f"unsafe: {', '.join(sorted(unsafe))}")
        else:
            origin = row
            for reply in answered:
                origin = origin | {"provenance": provenance(origin, name, reply)}
            yield origin | {"safety": sorted(found)}
    finish(replies)
