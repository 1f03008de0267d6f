"""The lines of a batch's error file, in the form of OpenAI's API.

A request that was answered with an error has the response, one that was not asked has an `error`::

    {"id": …, "custom_id": …, "response": {"status_code": 400, "request_id": …, "body": …}, "error": null}
    {"id": …, "custom_id": …, "response": null, "error": {"code": "batch_expired", "message": …}}
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemotron_core.errors import ErrorKind
from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_data.batch.result_line import START, NotAccepted, encode
from nemotron_data.rows.row import BadRow, Row
from nemotron_data.transport.protocol import Failure
from nemotron_gateway.batches.records import new_id

EXPIRED = {
    "code": "batch_expired",
    "message": "the batch's completion window ended before this request was answered",
}
ID_PREFIX = START.decode().rpartition('"')[2]


def failure_line(row: Row | BadRow, failure: Failure | NotAccepted | None) -> bytes:
    """Return the line of a request that was answered with an error."""
    if isinstance(row, BadRow):
        error = bad_request(f"{row.reason}: {row.remedy}")
    elif isinstance(failure, Failure) and failure.body is not None:
        return _line(row.custom_id, _response(failure.status, json.loads(failure.body)), None)
    else:
        error = HttpError.of_kind(ErrorKind.FAILED, str(failure))
    return _line(row.custom_id, _response(error.status, error.body()), None)


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the whole lines of a file, which may not exist. A kill may have torn the last one."""
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line


def expired_lines(source: Path, *done: Path) -> Iterator[bytes]:
    """Yield the line of each request of `source` that is in none of the files `done`."""
    names = {json.loads(line)["custom_id"] for path in done for line in read_lines(path)}
    with source.open("rb") as file:
        for line in file:
            custom_id = None if line.isspace() else json.loads(line)["custom_id"]
            if custom_id is not None and custom_id not in names:
                yield _line(custom_id, None, EXPIRED)


def _response(status: int | None, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": int(status or 0), "request_id": new_id(""), "body": body}


def _line(
    custom_id: str | None, response: dict[str, Any] | None, error: dict[str, Any] | None
) -> bytes:
    content = {
        "id": new_id(ID_PREFIX),
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return encode(content) + b"\n"
