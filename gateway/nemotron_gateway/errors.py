"""The answer to a client for each failure at Triton: OpenAI's form, and the right status."""

from __future__ import annotations

from nemotron_client import ClientError
from nemotron_core.errors import ErrorKind
from nemotron_core.openai.errors import HttpError, bad_request

PREFIX = ErrorKind.REFUSED.value


def failure(kind: ErrorKind, message: str) -> HttpError:
    """Return the error answer for a failure of that kind."""
    codes = kind.codes
    return HttpError(
        codes.http, message, kind=codes.openai_type, code=codes.openai_code, retry=codes.retry
    )


def from_client_error(error: ClientError) -> HttpError:
    """Return the error answer for a failure at Triton."""
    message = str(error)
    if error.kind is ErrorKind.REFUSED:
        message = message.removeprefix(PREFIX)
        too_long = "this model holds" in message
        return bad_request(message, code="context_length_exceeded" if too_long else None)
    return failure(error.kind, message)
