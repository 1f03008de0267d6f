"""Steps that let a model criticise an answer and write it anew."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_data.batch.accept import Acceptance
from nemotron_data.synthesis.asker import Stage
from nemotron_data.synthesis.context import Context
from nemotron_data.synthesis.kinds import Revise
from nemotron_data.synthesis.prompts import Prompt, conversation
from nemotron_data.synthesis.steps.asking import answered
from nemotron_data.synthesis.tables import Row, Rows


def revise(step: Revise, name: str, rows: Rows, context: Context) -> Iterator[Row]:
    """Criticise the last answer of each row's conversation and replace it, `rounds` times.

    The columns `draft` and `critique` keep what the last round began with.
    """
    where = f"steps.{name}.revise"
    critique = Prompt([("user", step.revise.critique)], f"{where}.critique")
    prompt = Prompt([("user", step.revise.prompt)], f"{where}.prompt")

    def stage(stage_name: str) -> Stage:
        model, sampling = step.asked_models[0], step.sampling.body()
        return Stage(stage_name, model, sampling, Acceptance(step.accept), step.attempts)

    def critiques(number: int, rows: Rows) -> Iterator[Row]:
        asked = stage(f"{name}.{number}.critique")
        for row, reply in context.replies(name, asked, rows, critique.messages):
            yield row | {"critique": reply.text.strip()}

    def answers(number: int, rows: Rows) -> Iterator[Row]:
        asked = stage(f"{name}.{number}")
        for row, reply in context.replies(name, asked, rows, prompt.messages):
            *messages, draft = conversation(row, where)
            yield answered(row | {"draft": draft["content"]}, messages, reply)

    for number in range(1, step.revise.rounds + 1):
        criticised = context.table(f"{name}.{number}.critique", critiques(number, rows))
        if number < step.revise.rounds:
            rows = context.table(f"{name}.{number}", answers(number, criticised))
    yield from answers(step.revise.rounds, criticised)
