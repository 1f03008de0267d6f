"""The check of a batch's input before anything is asked: each line is a request of OpenAI's API."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

from nemotron_data.rows.formats import read_lines
from nemotron_data.rows.parser import LONGEST_ID, decode
from nemotron_data.rows.row import PROMPTS, BadRow
from nemotron_gateway.batches.records import BatchError

ENDPOINTS = tuple(PROMPTS)
"""Endpoints that batches can ask."""
MAX_ERRORS = 50
"""Number of errors after which no more are collected."""
ID_BYTES = 16


def check_input(path: Path, endpoint: str, max_lines: int) -> tuple[int, list[BatchError]]:
    """Return the number of a batch's requests, and what is wrong with its input.

    Blank lines are left out. What stands in a request's body is checked when it is asked.
    """
    errors: list[BatchError] = []
    seen: set[bytes] = set()
    count = 0
    with path.open("rb") as file:
        for number, line in read_lines(file):
            count += 1
            if count > max_lines:
                message = f"the file has more than {max_lines} requests: split it"
                return count, [BatchError(code="too_many_requests", message=message)]
            try:
                _check(line, endpoint, seen)
            except _WrongLineError as error:
                errors.append(
                    BatchError(code=error.code, message=str(error), line=number, param=error.param)
                )
                if len(errors) == MAX_ERRORS:
                    break
    if not count:
        errors.append(BatchError(code="empty_file", message="the file has no request"))
    return count, errors


class _WrongLineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def _check(line: bytes | BadRow, endpoint: str, seen: set[bytes]) -> None:
    """Raise `_WrongLineError` if a line is no request. `seen` gets the hash of its custom_id."""
    content = _decode(line)
    if not isinstance(content, dict):
        raise _WrongLineError("invalid_json_line", "the line is no JSON object")
    custom_id = content.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_ID:
        message = f"custom_id must be a string of 1 to {LONGEST_ID} characters"
        raise _WrongLineError("invalid_custom_id", message, "custom_id")
    digest = blake2b(custom_id.encode(errors="surrogatepass"), digest_size=ID_BYTES).digest()
    if digest in seen:
        message = f"custom_id {custom_id!r} is there twice"
        raise _WrongLineError("duplicate_custom_id", message, "custom_id")
    seen.add(digest)
    if content.get("method") != "POST":
        raise _WrongLineError("invalid_method", "method must be POST", "method")
    if content.get("url") != endpoint:
        message = f"url must be the batch's endpoint, {endpoint}"
        raise _WrongLineError("mismatched_endpoint", message, "url")
    if not isinstance(content.get("body"), dict):
        raise _WrongLineError("missing_body", "body must be a JSON object", "body")


def _decode(line: bytes | BadRow) -> Any:
    if isinstance(line, BadRow):
        raise _WrongLineError("line_too_long", f"{line.reason}: {line.remedy}")
    try:
        return decode(line)
    except (ValueError, RecursionError) as error:
        raise _WrongLineError("invalid_json_line", str(error)) from error
