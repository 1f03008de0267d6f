"""JSON responses, and the response to each failure."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import JSONResponse

from nemotron_core.openai.errors import HttpError


class JsonResponse(JSONResponse):
    """A JSON response that a lone surrogate in its content does not break."""

    def render(self, content: Any) -> bytes:
        """Return the response's body."""
        return to_json(content)


def to_json(content: object) -> bytes:
    """Return JSON in UTF-8, with a question mark for each lone surrogate."""
    try:
        return _encode(content)
    except UnicodeEncodeError:
        return json.dumps(content, ensure_ascii=False).encode(errors="replace")


_encode = msgspec.json.Encoder().encode


def to_http_error(error: Exception, request_id: str) -> HttpError:
    """Return the error to answer with. An unexpected error has status 500 and hides its text."""
    if isinstance(error, HttpError):
        return error
    return HttpError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"the gateway failed; its log has more about request {request_id}",
        error_type="server_error",
    )
