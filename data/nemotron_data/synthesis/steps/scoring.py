"""Steps that give each row a reward: by a reward model, a known answer, or a check."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from nemotron_data.batch.accept import ANY, Acceptance
from nemotron_data.synthesis.asker import Stage, finish
from nemotron_data.synthesis.constraints import fulfilled
from nemotron_data.synthesis.context import FAILED, Context, provenance
from nemotron_data.synthesis.kinds import Constraints, Program, Reward, Score, Truth
from nemotron_data.synthesis.prompts import Messages, Text, conversation, failure
from nemotron_data.synthesis.sandbox import Sandbox
from nemotron_data.synthesis.scores import read_scores, weighted_sum
from nemotron_data.synthesis.tables import Row, Rows
from nemotron_data.transport.protocol import Choice

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|-?\.\d+")


def score(step: Score, name: str, rows: Rows, context: Context) -> Iterator[Row]:
    """Give each row the column `reward`."""
    where = f"steps.{name}.score"
    settings = step.score
    if isinstance(settings, Reward):
        yield from _rewarded(settings, step.attempts, name, rows, context)
        return
    if isinstance(settings, Program):
        program = Text(settings.program, where)
        sandbox = Sandbox(settings, context.asker.folder / f"{name}.programs.jsonl", where)
        passes = sandbox.passes(map(program.of, rows))
        yield from (row | {"reward": float(next(passes))} for row in rows)
        return
    judge = _judge(settings, where)
    for row in rows:
        yield row | judge(row)


def _judge(settings: Truth | Constraints, where: str) -> Callable[[Row], Row]:
    """Return a function from a row to the columns of its score."""
    if isinstance(settings, Truth):
        compare, reference = COMPARISONS[settings.truth], Text(settings.reference, where)

        def compared(row: Row) -> Row:
            try:
                return {"reward": float(compare(_answer(row, where), reference.of(row)))}
            except re.error as error:
                reason = ValueError(f"the reference is no regular expression: {error}")
                raise failure(reason, where, row) from error

        return compared
    return lambda row: _constrained(row, settings.constraints, where)


def _rewarded(
    settings: Reward, attempts: int, name: str, rows: Rows, context: Context
) -> Iterator[Row]:
    """Ask the reward model about the last answer of each row, or about each."""
    where = f"steps.{name}.score"
    stage = Stage(name, settings.reward, {}, Acceptance([ANY], [_has_scores]), attempts)

    def parts(row: Row) -> list[Messages]:
        messages = conversation(row, where)
        if not settings.every_turn:
            return [messages]
        ends = [end for end, turn in enumerate(messages, 1) if turn["role"] == "assistant"]
        return [messages[:end] for end in ends]

    replies = context.asker.ask(stage, itertools.chain.from_iterable(map(parts, rows)))
    for row in rows:
        turns = [next(replies) for _ in parts(row)]
        scored = [reply for reply in turns if reply is not None]
        if len(scored) < len(turns):
            context.leave_out(name, FAILED)
            continue
        scores = [read_scores(reply.text) for reply in scored]
        rewards = [weighted_sum(of_turn, settings.weights) for of_turn in scores]
        columns: Row = {"reward": rewards[-1], "scores": scores[-1]}
        if settings.every_turn:
            columns |= {"reward": min(rewards), "turn_rewards": rewards, "turn_scores": scores}
        origin = row
        for reply in scored:
            origin = origin | {"provenance": provenance(origin, name, reply)}
        yield origin | columns
    finish(replies)


def _has_scores(text: str, _choice: Choice) -> str | None:
    try:
        read_scores(text)
    except ValueError:
        return "no scores"
    return None


def _answer(row: Row, where: str) -> str:
    return conversation(row, where)[-1]["content"]


def _is_equal(answer: str, reference: str) -> bool:
    return " ".join(answer.casefold().split()) == " ".join(reference.casefold().split())


def _has_number(answer: str, reference: str) -> bool:
    """Return whether the last number of an answer is that of the reference.

    >>> _has_number("3 + 4 = 7, so there are 1,007.0 apples.", "1007")
    True
    """
    found, expected = last_number(answer), last_number(reference)
    return found is not None and found == expected


def _matches(answer: str, reference: str) -> bool:
    return re.search(reference, answer) is not None


COMPARISONS: dict[str, Callable[[str, str], bool]] = {
    "exact": _is_equal,
    "number": _has_number,
    "regex": _matches,
}


def last_number(text: str) -> Fraction | None:
    r"""Return the last number in a text, or `None` if there is none.

    >>> last_number("either 0.5 or \\boxed{3/4}")
    Fraction(3, 4)
    """
    found = NUMBER.findall(text)
    if not found:
        return None
    try:
        numerator, _slash, denominator = found[-1].replace(",", "").partition("/")
        return Fraction(Decimal(numerator)) / int(denominator or 1)
    except (InvalidOperation, ZeroDivisionError, ValueError):  # more digits than Python reads
        return None


def _constrained(row: Row, column: str, where: str) -> Row:
    """Return the fraction of a row's constraints that its answer fulfils, and which they are."""
    value: Any = row.get(column)
    constraints = value if isinstance(value, list) else [value]
    try:
        results = [fulfilled(constraint, _answer(row, where)) for constraint in constraints]
    except ValueError as error:
        raise failure(error, where, row) from error
    return {"reward": sum(results) / len(results) if results else 1.0, "fulfilled": results}
