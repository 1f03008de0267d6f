"""Calibration data: texts, conversations or token ids, read as sequences of token ids."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from nemotron_convert.calibration.options import BUILT_IN_NAME, DEFAULT_LENGTH
from nemotron_convert.source.nemo import Source
from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest
from nemotron_core.text import Message, Tokenizer, check_text
from nemotron_core.text.chat_format import CARD
from nemotron_core.text.prompt import check_training_order

BUILT_IN_FILE = "calibration_texts.jsonl"
"""The project's own calibration texts, a file of this package."""
LINE_LIMIT = 16 << 20
"""Largest number of bytes read for one line."""


@dataclass(frozen=True)
class CalibrationData:
    """Sequences of token ids, none of them empty, and the name of the file they come from."""

    name: str
    sequences: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Number of tokens in all sequences."""
        return sum(map(len, self.sequences))

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the sequences."""
        return text_digest(json.dumps(self.sequences, separators=(",", ":")))


def read_texts(path: Path | None, source: Source, length: int = DEFAULT_LENGTH) -> CalibrationData:
    """Read a JSONL file of texts and keep at most `length` tokens of each.

    Each line is `{"text": …}` or `{"messages": […]}`. Without `path`, the project's own texts are
    read. Raises `NemotronError` with the line's number if a line is not valid.
    """
    name = BUILT_IN_NAME if path is None else path.name
    tokenizer = _tokenizer(source)
    limit = min(length, source.config.max_positions)
    sequences = [_encode(tokenizer, row, where)[:limit] for row, where in _rows(path)]
    return _checked(name, sequences, source, path or BUILT_IN_NAME)


def read_ids(path: Path, source: Source) -> CalibrationData:
    """Read a JSON file that holds a list of lists of token ids.

    Raises `NemotronError` if the file is not such a list or does not fit the model.
    """
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise NemotronError(f"not JSON: {error}", where=path) from error
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and all(type(token_id) is int for token_id in row) for row in rows
    ):
        raise NemotronError("not a list of lists of token ids", where=path)
    return _checked(path.name, rows, source, path)


def _checked(
    name: str, rows: Sequence[Sequence[int]], source: Source, where: object
) -> CalibrationData:
    """Return the rows that are not empty. Raises `NemotronError` if one does not fit the model."""
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
        path.write_bytes(source.tokenizer)
        (source.chat.chat_format or CARD).write(Path(folder))
        return Tokenizer(path)


def _rows(path: Path | None) -> Iterator[tuple[Any, str]]:
    """Yield the JSON value of each line that is not blank, and the line's place for errors."""
    file = files(__package__).joinpath(BUILT_IN_FILE) if path is None else path
    number = 0
    try:
        with file.open("rb") as stream:
            while line := stream.readline(LINE_LIMIT):
                number += 1
                if line.strip():
                    yield json.loads(line), f"{path or BUILT_IN_NAME}, line {number}"
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise NemotronError(f"not JSON: {error}", where=f"{path}, line {number}") from error


def _encode(tokenizer: Tokenizer, row: Any, where: str) -> list[int]:
    if isinstance(row, dict) and "messages" in row:
        try:
            check_training_order(row["messages"])
        except NemotronError as error:
            raise NemotronError(error.what, where=f"{where}, {error.where}") from error
        return tokenizer.encode_chat(cast(list[Message], row["messages"]), answer_follows=False)
    if isinstance(row, dict) and "text" in row:
        check_text(row["text"], where=where)
        return tokenizer.encode(row["text"])
    raise NemotronError(
        "neither text nor messages", where=where, remedy='write {"text": "…"} or {"messages": […]}'
    )
