"""The input: lines of a JSONL file as rows with an id, or the reason why a line is none.

A line is either OpenAI's for batches,
``{"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}``,
or plain: the body alone, with `messages` or with `prompt`, and if you like a `custom_id`.
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
"""The key of a body that holds what is asked, for each of the two endpoints."""
STREAM = "-"
"""In place of a path: standard input or output."""
LONGEST_LINE = 16 << 20
LONGEST_ID = 512
_ENVELOPE = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True)
class Row:
    """One request. `number` is its line's, from 1."""

    number: int
    custom_id: str
    endpoint: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be asked, and why."""

    number: int
    custom_id: str | None
    reason: str
    remedy: str


class Source:
    """An input, read once already for its hash; NemotronError if it cannot be.

    A path, decompressed if it ends with `.gz`, or standard input, which is read to its end first
    and kept in a temporary file without a name.
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
        """The line of each custom_id's digest, as far as `read` has come."""

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Number and content of each line that is not empty. NemotronError if it cannot be read."""
        self._file.seek(0)
        for number, line in enumerate(_lines(self._file, self.name), 1):
            if line.strip():
                yield number, line

    def read(self) -> Iterator[Row | BadRow]:
        """Every row in order; of two with the same id, the second is a bad one."""
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
    """16 bytes for any id, for sets of millions of them."""
    return int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=16).digest(), "big")


def parse(number: int, line: bytes) -> Row | BadRow:
    """The row in a line.

    >>> parse(7, b'{"prompt": "One, two,", "max_tokens": 5}')
    Row(number=7, custom_id='line-7-f439fbdf', endpoint='/v1/completions', body={'prompt': 'One, two,', 'max_tokens': 5})
    """  # noqa: E501
    custom_id = None
    try:
        content = json.loads(line, parse_constant=_no_constant)
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


def _no_constant(name: str) -> float:
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
    if unknown := sorted(content.keys() - _ENVELOPE):
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
