"""Steps that make preference pairs of the answers to one prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nemotron_data.batch.accept import ANY, Acceptance
from nemotron_data.synthesis.asker import Stage
from nemotron_data.synthesis.context import Context
from nemotron_data.synthesis.groups import groups, rows_at
from nemotron_data.synthesis.kinds import Judge, Pairing, Pairs
from nemotron_data.synthesis.prompts import Messages, Text, Value, conversation, transcript, user
from nemotron_data.synthesis.tables import Row, Rows
from nemotron_data.transport.protocol import Choice

VERDICT = re.compile(
    r"^\W*(?:(?:the |my )?(?:final )?(?:answer|verdict)\b(?: is)?)?\W*([ABT])\W*$", re.I
)
"""The last line of a judge's answer."""
JUDGE_PROMPT = """\
Two assistants have answered the same conversation. Compare how helpful, correct and clear the two
answers are. Their order and their lengths say nothing about their quality.

[Conversation]
{{ prompt }}

[Answer A]
{{ a }}

[Answer B]
{{ b }}

Which answer is better? Reply with one letter only: A, B, or T for a tie."""
"""Question to a judge, if a recipe has none of its own."""


def pair(step: Pairs, name: str, rows: Rows, context: Context) -> Iterator[Row]:
    """Yield a pair for each prompt: its best and its worst answer, or what a judge says."""
    where = f"steps.{name}.pairs"
    if step.pairs.judge is not None:
        pairs = context.table(f"{name}.pairs", _first_two(step.pairs, name, rows, where, context))
        yield from _judged(step.pairs.judge, name, pairs, where, context)
    else:
        yield from _best_and_worst(step.pairs, name, rows, where, context)


def _best_and_worst(
    settings: Pairing, name: str, rows: Rows, where: str, context: Context
) -> Iterator[Row]:
    value = Value(settings.by, f"{where}.by")
    ends: list[tuple[int, int, float, float]] = []
    for members in groups(rows, settings.per, value, where):
        best, worst = members[0], members[-1]
        if len(members) < 2:
            context.leave_out(name, "only one answer")
        elif best.value - worst.value <= settings.margin:
            context.leave_out(name, "margin")
        elif settings.least is not None and best.value < settings.least:
            context.leave_out(name, "not good enough")
        else:
            ends.append((best.index, worst.index, best.value, worst.value))
    for chosen, rejected, high, low in _rows_of(rows, ends):
        yield pair_of(chosen, rejected, where) | {"chosen_reward": high, "rejected_reward": low}


def _rows_of(
    rows: Rows, ends: list[tuple[int, int, float, float]]
) -> Iterator[tuple[Row, Row, float, float]]:
    """Yield the two rows of each pair with their values, as soon as both were read."""
    wanted: dict[int, list[int]] = {}
    for number, (best, worst, _high, _low) in enumerate(ends):
        wanted.setdefault(best, []).append(number)
        wanted.setdefault(worst, []).append(number)
    waiting: dict[int, Row] = {}
    for index, row in rows_at(rows, set(wanted)):
        for number in wanted[index]:
            best, worst, high, low = ends[number]
            other = waiting.pop(number, None)
            if other is None:
                waiting[number] = row
            elif index == best:
                yield row, other, high, low
            else:
                yield other, row, high, low


def pair_of(chosen: Row, rejected: Row, where: str) -> Row:
    """Return the pair of two answers, with the columns that both rows have in common."""
    *prompt, good = conversation(chosen, where)
    bad = conversation(rejected, where)[-1]
    left_out = {"messages", "answer", "provenance", "model", "finish_reason", "reward", "scores"}
    common = {
        name: value
        for name, value in chosen.items()
        if name not in left_out and name in rejected and rejected[name] == value
    }
    return common | {
        "prompt": prompt,
        "chosen": [good],
        "rejected": [bad],
        "chosen_model": chosen.get("model"),
        "rejected_model": rejected.get("model"),
        "provenance": [*(chosen.get("provenance") or ()), *(rejected.get("provenance") or ())],
    }


def _first_two(
    settings: Pairing, name: str, rows: Rows, where: str, context: Context
) -> Iterator[Row]:
    """Yield the first two answers to each prompt as a pair, in no order of quality."""
    ends = []
    for members in groups(rows, settings.per, None, where):
        if len(members) < 2:
            context.leave_out(name, "only one answer")
        else:
            ends.append((members[0].index, members[1].index, 0.0, 0.0))
    for first, second, _high, _low in _rows_of(rows, ends):
        if conversation(first, where)[-1] == conversation(second, where)[-1]:
            context.leave_out(name, "equal answers")
        else:
            yield pair_of(first, second, where)


def _judged(judge: Judge, name: str, pairs: Rows, where: str, context: Context) -> Iterator[Row]:
    """Ask about each pair in both orders, and yield those on which both verdicts agree."""
    question = Text(judge.prompt or JUDGE_PROMPT, f"{where}.judge.prompt")

    def asked(row: Row, order: tuple[str, str]) -> Messages:
        a, b = (row[key][0]["content"] for key in order)
        return [user(question.of(row | {"prompt": transcript(row["prompt"]), "a": a, "b": b}))]

    def verdicts(stage_name: str, order: tuple[str, str], rows: Rows) -> Iterator[Row]:
        stage = Stage(
            stage_name,
            judge.model,
            judge.sampling.body(),
            Acceptance([ANY], [_has_verdict]),
            judge.attempts,
        )
        for row, reply in context.replies(name, stage, rows, lambda row: asked(row, order)):
            yield row | {"verdicts": [*(row.get("verdicts") or ()), verdict(reply.text)]}

    order = ("chosen", "rejected")
    once = context.table(f"{name}.once", verdicts(f"{name}.once", order, pairs))
    for row in verdicts(f"{name}.swapped", order[::-1], once):
        first, second = row["verdicts"]
        if (first, second) == ("A", "B"):
            yield row
        elif (first, second) == ("B", "A"):
            yield row | {
                "chosen": row["rejected"],
                "rejected": row["chosen"],
                "chosen_model": row["rejected_model"],
                "rejected_model": row["chosen_model"],
            }
        else:
            context.leave_out(name, "tie" if first == second == "T" else "no agreement")


def verdict(text: str) -> str | None:
    r"""Return the letter A, B or T on the last line of a judge's answer, or `None`.

    >>> verdict("Both are fine, but the second is clearer.\nAnswer: B")
    'B'
    """
    lines = text.strip().splitlines()
    match = VERDICT.match(lines[-1]) if lines else None
    return None if match is None else match[1].upper()


def _has_verdict(text: str, _choice: Choice) -> str | None:
    return None if verdict(text) else "no verdict"
