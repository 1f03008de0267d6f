"""The lines of an output and of its error file, in the form of OpenAI's batches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemotron_core.errors import ErrorKind
from nemotron_data.rows import BadRow, Row, digest
from nemotron_data.transport.protocol import Answer, Failure

ERROR_CODES = {
    ErrorKind.REFUSED: ("refused", "correct the row"),
    ErrorKind.UNREACHABLE: ("lost", "run the same command again"),
}
"""Values of `error.code` and `error.remedy` by kind of failure; the code of any other kind is
"failed"."""


def result_line(custom_id: str, answer: Answer) -> bytes:
    """Return the line of a row that has an answer.

    Raises `Failure` if the answer cannot be written as JSON.
    """
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
    try:
        return _line(custom_id, custom_id, response, None)
    except (ValueError, RecursionError) as error:
        kind, text = ErrorKind.FAILED, f"the answer is no JSON: {error}"
        raise Failure(kind, text, status=kind.codes.http) from error


def failure_line(row: Row | BadRow, failure: Failure | None) -> bytes:
    """Return the line of a failed row: the number of its line, the reason, and what to do."""
    error: dict[str, Any] = {"line": row.number}
    if isinstance(row, BadRow):
        error |= {"code": "bad_row", "message": row.reason, "remedy": row.remedy}
    elif failure is not None:
        code, remedy = ERROR_CODES.get(failure.kind, ("failed", "run the same command again"))
        error |= {"code": code, "message": str(failure), "remedy": remedy}
        error |= {} if failure.status is None else {"status_code": failure.status}
    name = f"line {row.number}" if row.custom_id is None else row.custom_id
    return _line(name, row.custom_id, None, error)


def _line(
    name: str,
    custom_id: str | None,
    response: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
) -> bytes:
    id_ = f"batch_req_{digest(name):032x}"
    line = {"id": id_, "custom_id": custom_id, "response": response, "error": error}
    try:
        return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        return json.dumps(line, allow_nan=False).encode() + b"\n"
