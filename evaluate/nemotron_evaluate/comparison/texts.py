"""The texts of a comparison, as the token ids that both servers get."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_evaluate.server import Server

FORMS = "each line is an object with text, messages or ids"


@dataclass(frozen=True)
class TokenText:
    """One text. The greedy answer continues `prompt`; log-probabilities are those of `ids`."""

    ids: tuple[int, ...]
    prompt: tuple[int, ...]


def read_texts(path: Path, server: Server, length: int) -> list[TokenText]:
    """Read a JSONL file, and have the server tokenize what is text.

    A line is `{"text": …}`, `{"messages": […]}` or `{"ids": […]}`; at most `length` tokens of each
    are kept. The prompt of a conversation is all before the assistant's last message; that of a
    text is its first half. Raises `NemotronError` with the line's number if a line is not valid.
    """
    texts = [_encode(server, row, where, length) for row, where in _rows(path)]
    if not texts:
        raise NemotronError("there is no text", where=path, remedy=FORMS)
    return texts


def _rows(path: Path) -> Iterator[tuple[Any, str]]:
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield json.loads(line), f"{path}, line {number}"
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise NemotronError(f"not JSON: {error}", where=f"{path}, line {number}") from error


def _encode(server: Server, row: Any, where: str, length: int) -> TokenText:
    keys = row.keys() & {"text", "messages", "ids"} if isinstance(row, dict) else set()
    if len(keys) != 1:
        raise NemotronError("neither text, messages nor ids", where=where, remedy=FORMS)
    prompt: list[int] | None = None
    if keys == {"ids"}:
        ids = row["ids"]
        if not isinstance(ids, list) or not all(type(id_) is int and id_ >= 0 for id_ in ids):
            raise NemotronError("ids is not a list of token ids", where=where)
    else:
        try:
            if keys == {"text"}:
                ids = server.tokenize(prompt=row["text"], add_special_tokens=False)
            else:
                ids, prompt = _conversation(server, row["messages"])
        except NemotronError as error:
            raise NemotronError(str(error), where=where, kind=error.kind) from error
    ids = ids[:length]
    if len(ids) < 2:
        raise NemotronError("a text needs two tokens", where=where)
    prompt = ids[: len(ids) // 2] if prompt is None else prompt[:length]
    return TokenText(tuple(ids), tuple(prompt))


def _conversation(server: Server, messages: Any) -> tuple[list[int], list[int]]:
    """Return the tokens of a conversation, and those before the assistant's last message."""
    is_answered = (
        isinstance(messages, list)
        and len(messages) > 1
        and isinstance(messages[-1], dict)
        and messages[-1].get("role") == "assistant"
    )
    if not is_answered:
        ids = server.tokenize(messages=messages)
        return ids, ids
    ids = server.tokenize(messages=messages, add_generation_prompt=False)
    return ids, server.tokenize(messages=messages[:-1])
