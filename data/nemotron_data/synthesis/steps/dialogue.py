"""Steps that make conversations: one model answers, and one plays the user."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_data.batch.accept import Acceptance
from nemotron_data.synthesis.asker import Stage
from nemotron_data.synthesis.context import Context
from nemotron_data.synthesis.kinds import Dialogue
from nemotron_data.synthesis.prompts import Messages, Prompt, Text, conversation, user
from nemotron_data.synthesis.steps.asking import answered
from nemotron_data.synthesis.tables import Row, Rows

SWAPPED = {"user": "assistant", "assistant": "user"}
"""The roles of a conversation as the model that plays the user sees them."""


def dialogue(step: Dialogue, name: str, rows: Rows, context: Context) -> Iterator[Row]:
    """Make a conversation with `turns.count` messages of the user from each row.

    Each message is a stage of its own: the answer to the prompt, then in turn a message of the user
    and the answer to it.
    """
    prompt = Prompt(step.templates, f"steps.{name}")
    instructions = Text(step.turns.user, f"steps.{name}.turns.user")

    def swapped(row: Row) -> Messages:
        turns = conversation(row, f"steps.{name}")
        return [
            user(instructions.of(row)),
            *(turn | {"role": SWAPPED[turn["role"]]} for turn in turns if turn["role"] in SWAPPED),
        ]

    def answers(number: int, rows: Rows) -> Iterator[Row]:
        stage = Stage(
            f"{name}.{number}",
            step.asked_models[0],
            step.sampling.body(),
            Acceptance(step.accept),
            step.attempts,
        )
        for row, reply in context.replies(name, stage, rows, lambda row: row["messages"]):
            yield answered(row, row["messages"], reply)

    def questions(number: int, rows: Rows) -> Iterator[Row]:
        stage = Stage(
            f"{name}.{number}.user",
            step.turns.model,
            step.sampling.body(),
            attempts=step.attempts,
        )
        for row, reply in context.replies(name, stage, rows, swapped):
            yield row | {"messages": [*row["messages"], user(reply.text.strip())]}

    openings = (row | {"messages": prompt.messages(row)} for row in rows)
    asked = context.table(f"{name}.1.user", openings)
    for number in range(1, step.turns.count):
        replied = context.table(f"{name}.{number}", answers(number, asked))
        asked = context.table(f"{name}.{number + 1}.user", questions(number + 1, replied))
    yield from answers(step.turns.count, asked)
