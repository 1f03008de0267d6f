"""The input: lines of a JSONL file as rows with an id, or the reason why a line is not a row.

A line is either a line of OpenAI's batches,
``{"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}``,
or plain: the body alone, with `messages` or with `prompt`, and optionally a `custom_id`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from nemotron_core.errors import NemotronError

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
PROMPTS = {CHAT: "messages", COMPLETION: "prompt"}
"""Key of a request body that holds the prompt, for each of the two endpoints."""
STREAM = "-"
"""Stands for standard input or output in place of a path."""
LONGEST_LINE = 16 << 20
"""Length in bytes, with the newline."""
LONGEST_ID = 512
"""Length in characters."""
_BATCH_KEYS = {"custom_id", "method", "url", "body"}
"""Keys of a line of OpenAI's batches."""


@dataclass(frozen=True)
class Row:
    """One request. `number` is the number of its line, from 1."""

    number: int
    custom_id: str
    endpoint: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be sent, with the reason and a remedy."""

    number: int
    custom_id: str | None
    reason: str
    remedy: str


class Source:
    """An input, which is read once for its hash when it is opened.

    `path` is decompressed if it ends with `.gz`. With `-`, standard input is first copied to its
    end into a temporary file without a name. Raises `NemotronError` if the input cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.name = "standard input" if path == STREAM else path
        try:
            self._file = _open(path)
        except OSError as error:
            raise NemotronError(
                f"cannot read: {error.strerror or error}", where=self.name
            ) from error
        sha256, self.rows = hashlib.sha256(), 0
        for line in _lines(self._file, self.name):
            sha256.update(line)
            self.rows += bool(line.strip())
        self.sha256 = sha256.hexdigest()
        self.numbers: dict[int, int] = {}
        """Number of the line of each custom_id, by its digest, for the rows read so far."""

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number and content of each line that is not empty.

        Raises `NemotronError` if the input cannot be read.
        """
        self._file.seek(0)
        for number, line in enumerate(_lines(self._file, self.name), 1):
            if line.strip():
                yield number, line

    def read(self) -> Iterator[Row | BadRow]:
        """Yield every row in order. The second of two rows with the same custom_id is a bad row."""
        self.numbers.clear()
        for number, line in self.lines():
            row = parse(number, line)
            if isinstance(row, Row):
                earlier = self.numbers.setdefault(digest(row.custom_id), number)
                if earlier != number:
                    row = BadRow(
                        number,
                        row.custom_id,
                        f"custom_id {row.custom_id!r} is in lines {earlier} and {number}",
                        "give each row an id of its own",
                    )
            yield row

    def close(self) -> None:
        self._file.close()


def _open(path: str) -> IO[bytes]:
    if path == STREAM:
        spool = cast("IO[bytes]", tempfile.TemporaryFile())  # noqa: SIM115  # closed with the source
        shutil.copyfileobj(sys.stdin.buffer, spool)
        spool.seek(0)
        return spool
    if path.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return Path(path).open("rb")


def _lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        while line := file.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise NemotronError(f"a line has more than {LONGEST_LINE:,} bytes", where=name)
            yield line
    except (OSError, EOFError, zlib.error) as error:
        raise NemotronError(f"cannot read: {error}", where=name) from error


def digest(custom_id: str) -> int:
    """Return 16 bytes for any custom_id, small enough for sets of millions of them."""
    return int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=16).digest(), "big")


def parse(number: int, line: bytes) -> Row | BadRow:
    """Return the row in a line, or why there is none.

    >>> parse(7, b'{"prompt": "One, two,", "max_tokens": 5}')
    Row(number=7, custom_id='line-7-f439fbdf', endpoint='/v1/completions', body={'prompt': 'One, two,', 'max_tokens': 5})
    """  # noqa: E501
    custom_id = None
    try:
        content = json.loads(line, parse_constant=_reject_constant)
        if not isinstance(content, dict):
            raise ValueError("the line is not a JSON object")
        custom_id = _custom_id(content)
        endpoint, body = _request(content)
        _check(endpoint, body)
    except RecursionError:
        return BadRow(number, custom_id, "the JSON is nested too deep", "write a flat request")
    except ValueError as error:
        remedy = "write an OpenAI batch line, or an object with messages or with prompt"
        return BadRow(number, custom_id, " ".join(str(error).split()), remedy)
    if custom_id is None:
        custom_id = f"line-{number}-{hashlib.sha256(line.strip()).hexdigest()[:8]}"
    return Row(number, custom_id, endpoint, body)


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _custom_id(content: Mapping[str, Any]) -> str | None:
    custom_id = content.get("custom_id")
    if custom_id is None and not content.keys() & {"body", "url", "method"}:
        return None
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_ID:
        raise ValueError(f"custom_id must be a string of 1 to {LONGEST_ID} characters")
    custom_id.encode()  # a lone surrogate cannot be written: UnicodeEncodeError is a ValueError
    return custom_id


def _request(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if "body" not in content:
        body = {key: value for key, value in content.items() if key != "custom_id"}
        return (COMPLETION if "prompt" in body else CHAT), body
    if unknown := sorted(content.keys() - _BATCH_KEYS):
        raise ValueError(f"unknown key {unknown[0]!r} beside body")
    if content.get("method", "POST") != "POST":
        raise ValueError(f"method {content['method']!r} is not POST")
    endpoint, body = content.get("url", CHAT), content["body"]
    if not isinstance(endpoint, str) or endpoint not in PROMPTS:
        raise ValueError(f"url {endpoint!r} is neither {CHAT} nor {COMPLETION}")
    if not isinstance(body, dict):
        raise ValueError("body is not a JSON object")
    return endpoint, body


def _check(endpoint: str, body: Mapping[str, Any]) -> None:
    key = PROMPTS[endpoint]
    (other,) = PROMPTS.keys() - {endpoint}
    if key not in body:
        raise ValueError(f"there is no {key}")
    if PROMPTS[other] in body:
        raise ValueError(f"{PROMPTS[other]} does not belong to {endpoint}")
    if not isinstance(body[key], str | list) or not body[key]:
        raise ValueError(f"{key} is empty or of the wrong type")
    if body.get("stream"):
        raise ValueError("stream is set, but a batch writes whole answers")
