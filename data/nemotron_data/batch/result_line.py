"""A line of an output, in the form of OpenAI's batches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemotron_data.rows import BadRow, Row, digest
from nemotron_data.transport.protocol import Answer, Failure, Kind


def result_line(custom_id: str, answer: Answer) -> bytes:
    """For a row that has its answer; Failure if that cannot be written as JSON."""
    response = {
        "status_code": answer.status,
        "request_id": answer.request_id,
        "body": answer.body,
    }
    try:
        return _line(_id(custom_id), custom_id, response, None)
    except (ValueError, RecursionError) as error:
        raise Failure(Kind.FAILED, f"the answer is no JSON: {error}", status=500) from error


def failure_line(row: Row | BadRow, failure: Failure | None) -> bytes:
    """For a row that has none: what was wrong, in which line, and what to do."""
    error: dict[str, Any] = {"line": row.number}
    if isinstance(row, BadRow):
        error |= {"code": "bad_row", "message": row.reason, "remedy": row.remedy}
    elif failure is not None:
        remedy = REMEDIES.get(failure.kind, "run the same command again")
        status = failure.status
        error |= {"code": failure.kind.value, "message": str(failure), "remedy": remedy}
        error |= {} if status is None else {"status_code": status}
    custom_id = row.custom_id
    name = f"line {row.number}" if custom_id is None else custom_id
    return _line(_id(name), custom_id, None, error)


REMEDIES = {Kind.REFUSED: "correct the row"}


def _id(name: str) -> str:
    return f"batch_req_{digest(name):032x}"


def _line(
    id_: str,
    custom_id: str | None,
    response: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
) -> bytes:
    line = {"id": id_, "custom_id": custom_id, "response": response, "error": error}
    try:
        return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
        return json.dumps(line, allow_nan=False).encode() + b"\n"
