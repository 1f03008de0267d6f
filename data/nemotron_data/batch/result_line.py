"""The lines of an output and of its error file, in the form of OpenAI's batches.

A line begins with the row's key, which says what was asked, so the output itself tells which rows
of an input it has the answers of::

    {"id": "batch_req_KEY", "custom_id": …, "response": {…, "body": …}, "error": null}

Columns of the input that are no part of the request follow as `metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from nemotron_core.errors import ErrorKind
from nemotron_data.rows.row import BadRow, Row
from nemotron_data.transport.protocol import Answer, Failure

START = b'{"id": "batch_req_'
KEY_END = len(START) + 32
"""Where the key's hexadecimal digits end in a line."""
CUSTOM_ID_START = b'", "custom_id": '
ERROR_CODES = {
    ErrorKind.REFUSED: ("refused", "correct the row"),
    ErrorKind.UNREACHABLE: ("lost", "run the same command again"),
}
"""Values of `error.code` and `error.remedy` by kind of failure; the code of any other kind is
"failed"."""


class NotAccepted(Exception):
    """An answer that came, but that the run does not accept: the reason, and the answer."""

    def __init__(self, reason: str, answer: Answer) -> None:
        super().__init__(reason)
        self.answer = answer


FailureLine = Callable[["Row | BadRow", "Failure | NotAccepted | None"], bytes]
"""Makes the line of a failed row. A bad row has no failure."""


def result_line(row: Row, answer: Answer) -> bytes:
    """Return the line of a row that has an answer, whose body stays as the server wrote it."""
    parts = [_start(row.key, row.custom_id), _response(answer), b', "error": null']
    if row.metadata:
        parts += [b', "metadata": ', encode(row.metadata)]
    return b"".join([*parts, b"}\n"])


def failure_line(row: Row | BadRow, failure: Failure | NotAccepted | None) -> bytes:
    """Return the line of a failed row: the number of its line, the reason, and what to do."""
    error: dict[str, Any] = {"line": row.number}
    if row.file is not None:
        error["file"] = row.file
    response = b"null"
    if isinstance(row, BadRow):
        error |= {"code": "bad_row", "message": row.reason, "remedy": row.remedy}
    elif isinstance(failure, NotAccepted):
        remedy = "change the row, --max-tokens or --accept"
        error |= {"code": "not_accepted", "message": str(failure), "remedy": remedy}
        response = _response(failure.answer)
    elif failure is not None:
        code, remedy = ERROR_CODES.get(failure.kind, ("failed", "run the same command again"))
        error |= {"code": code, "message": str(failure), "remedy": remedy}
        error |= {} if failure.status is None else {"status_code": failure.status}
    key = row.key if isinstance(row, Row) else row.number.to_bytes(16, "big")
    parts = [_start(key, row.custom_id), response, b', "error": ', encode(error)]
    if isinstance(row, Row) and row.metadata:
        parts += [b', "metadata": ', encode(row.metadata)]
    return b"".join([*parts, b"}\n"])


def encode(content: object) -> bytes:
    """Return content as JSON in UTF-8, with halves of surrogate pairs as escapes.

    Values that JSON does not have, from a table, become texts.
    """
    try:
        return msgspec.json.encode(content)
    except (UnicodeEncodeError, TypeError, OverflowError):
        return json.dumps(content, default=str).encode()


def _start(key: bytes, custom_id: str | None) -> bytes:
    return b"".join(
        [START, key.hex().encode(), CUSTOM_ID_START, encode(custom_id), b', "response": ']
    )


def _response(answer: Answer) -> bytes:
    body = answer.body
    if b"\n" in body or b"\r" in body:  # between the tokens of JSON, never inside a string
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    start = b'{"status_code": %d, "request_id": %s, "body": '
    return start % (answer.status, encode(answer.request_id)) + body.strip() + b"}"
