"""The questions that the committed model answers exactly, with the tokens of each answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_core.text import AnswerStream, Tokenizer
from tests.tiny_nemotron.dialogues import Message, Question

ANSWERS = Path(__file__).with_name("answers.jsonl")


@dataclass(frozen=True)
class ExactAnswer:
    """A question and its answer's tokens under greedy decoding in float32, end of turn last."""

    question: Question
    token_ids: list[int]


def load_answers(path: Path = ANSWERS) -> list[ExactAnswer]:
    """Read the committed answers, in the order of the questions."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        ExactAnswer(
            Question(tuple(Message(**m) for m in row["messages"]), row["answer"]), row["token_ids"]
        )
        for row in rows
    ]


def save_answers(answers: Sequence[ExactAnswer], path: Path = ANSWERS) -> None:
    """Write the file that `load_answers` reads: one JSON object per line."""
    rows = [
        {
            "messages": [message.as_dict() for message in answer.question.messages],
            "answer": answer.question.answer,
            "token_ids": answer.token_ids,
        }
        for answer in answers
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def answer_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return an answer's tokens as the text that a client receives."""
    return AnswerStream(tokenizer, chat=True, end_ids=tokenizer.end_ids).push(ids, "stop")
