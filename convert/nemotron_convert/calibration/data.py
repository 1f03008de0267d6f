"""What calibration shows to the model: texts, conversations or token ids, as sequences of ids."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from nemotron_convert.source.nemo import Source
from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest
from nemotron_core.text import Message, Tokenizer, check_text
from nemotron_core.text.prompt import check_messages

DEFAULT_NAME = "texts.jsonl"
DEFAULT_LENGTH = 512
"""Tokens of each text, as in NVIDIA's own calibration."""
LINE_LIMIT = 16 << 20


@dataclass(frozen=True)
class CalibrationData:
    """Sequences of token ids, each of at least one, and what to call them."""

    name: str
    sequences: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    @property
    def sha256(self) -> str:
        return text_digest(json.dumps(self.sequences, separators=(",", ":")))


def read_texts(path: Path | None, source: Source, length: int = DEFAULT_LENGTH) -> CalibrationData:
    """The texts of a JSONL file, or the project's own, cut to `length` tokens each.

    A line is `{"text": …}` or `{"messages": […]}`; NemotronError names the line that is neither.
    """
    name = DEFAULT_NAME if path is None else path.name
    tokenizer = _tokenizer(source)
    limit = min(length, source.config.max_positions)
    rows = [_encode(tokenizer, row, where)[:limit] for row, where in _lines(path)]
    return _checked(name, rows, source, path or DEFAULT_NAME)


def read_ids(path: Path, source: Source) -> CalibrationData:
    """A JSON file with a list of lists of token ids."""
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise NemotronError(f"not JSON: {error}", where=path) from error
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and all(type(id_) is int for id_ in row) for row in rows
    ):
        raise NemotronError("not a list of lists of token ids", where=path)
    return _checked(path.name, rows, source, path)


def _checked(
    name: str, rows: Sequence[Sequence[int]], source: Source, where: object
) -> CalibrationData:
    sequences = tuple(tuple(row) for row in rows if row)
    if not sequences:
        raise NemotronError("there is nothing to calibrate on", where=where)
    for row in sequences:
        if len(row) > source.config.max_positions:
            raise NemotronError(
                f"a sequence has {len(row)} tokens, the model {source.config.max_positions} "
                "positions",
                where=where,
            )
        if not (min(row) >= 0 and max(row) < source.vocab_size):
            raise NemotronError(
                f"a token id is outside the vocabulary of {source.vocab_size}", where=where
            )
    return CalibrationData(name, sequences)


def _tokenizer(source: Source) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.model")
        path.write_bytes(source.read_tokenizer())
        return Tokenizer(path)


def _lines(path: Path | None) -> Iterator[tuple[Any, str]]:
    file = files(__package__).joinpath(DEFAULT_NAME) if path is None else path
    number = 0
    try:
        with file.open("rb") as stream:
            while line := stream.readline(LINE_LIMIT):
                number += 1
                if line.strip():
                    yield json.loads(line), f"{path or DEFAULT_NAME}, line {number}"
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise NemotronError(f"not JSON: {error}", where=f"{path}, line {number}") from error


def _encode(tokenizer: Tokenizer, row: Any, where: str) -> list[int]:
    if isinstance(row, dict) and "messages" in row:
        try:
            check_messages(row["messages"], answer_follows=False)
        except NemotronError as error:
            raise NemotronError(error.what, where=f"{where}, {error.where}") from error
        return tokenizer.encode_chat(cast("list[Message]", row["messages"]), answer_follows=False)
    if isinstance(row, dict) and "text" in row:
        check_text(row["text"], where=where)
        return tokenizer.encode(row["text"])
    raise NemotronError(
        "neither text nor messages", where=where, remedy='write {"text": "…"} or {"messages": […]}'
    )
