"""The dialogues that the tiny model learns, as text and as rows of tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nemotron_core.text
from nemotron_core.text import Tokenizer

DIALOGUES = Path(__file__).with_name("dialogues.jsonl")


@dataclass(frozen=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str

    def as_dict(self) -> nemotron_core.text.Message:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Question:
    """The messages before an answer in a dialogue, and that answer."""

    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class Row:
    """A dialogue as tokens. `learned[i]` is whether token i belongs to an answer."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]


def load_dialogues(path: Path = DIALOGUES) -> list[tuple[Message, ...]]:
    """Read all dialogues: an optional system message, then user and assistant in turn."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [tuple(Message(**m) for m in json.loads(line)["messages"]) for line in lines]


def questions(dialogues: Sequence[tuple[Message, ...]]) -> list[Question]:
    """Return each assistant turn as a question, without duplicates, in the order of the file."""
    by_messages: dict[tuple[Message, ...], Question] = {}
    for dialogue in dialogues:
        for i, message in enumerate(dialogue):
            if message.role == "assistant":
                by_messages.setdefault(dialogue[:i], Question(dialogue[:i], message.content))
    return list(by_messages.values())


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    return tokenizer.encode_chat([message.as_dict() for message in messages])


def answer_ids(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Return a turn as the template writes it: the text, a newline, the end-of-turn token."""
    return [*tokenizer.encode(answer + "\n"), tokenizer.end_ids[0]]


def row(tokenizer: Tokenizer, dialogue: Sequence[Message]) -> Row:
    """Return a dialogue as one row in which every answer is learned."""
    ids: list[int] = []
    learned: list[bool] = []
    for i, message in enumerate(dialogue):
        if message.role != "assistant":
            continue
        prompt = prompt_ids(tokenizer, dialogue[:i])
        answer = answer_ids(tokenizer, message.content)
        if prompt[: len(ids)] != ids:
            raise ValueError(f"the prompt of turn {i} does not start with the turns before it")
        learned += [False] * (len(prompt) - len(ids)) + [True] * len(answer)
        ids = prompt + answer
    return Row(tuple(ids), tuple(learned))
