"""Errors as HTTP responses in the form of OpenAI's API."""

from __future__ import annotations

from nemotron_core.errors import ErrorKind

RETRY_SECONDS = 1
"""Value of `Retry-After`, in seconds, on responses that a later attempt may change."""
INVALID_REQUEST = ErrorKind.REFUSED.codes


class HttpError(Exception):
    """An error response. `param` names the key of the request that is wrong.

    `error_type` and `code` are `error.type` and `error.code` of OpenAI's API. With `retry` the
    response carries `Retry-After`; with `closes` the connection is closed after it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str = INVALID_REQUEST.openai_type,
        code: str | None = None,
        param: str | None = None,
        retry: bool = False,
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type
        self.code = code
        self.param = param
        self.headers = {"Retry-After": str(RETRY_SECONDS)} if retry else {}
        if closes:
            self.headers["Connection"] = "close"

    @classmethod
    def of_kind(cls, kind: ErrorKind, message: str) -> HttpError:
        """Return the response for a failure of that kind, as `ERROR_CODES` has it."""
        codes = kind.codes
        return cls(
            codes.http,
            message,
            error_type=codes.openai_type,
            code=codes.openai_code,
            retry=codes.retry,
        )

    def body(self) -> dict[str, object]:
        """Return the response's JSON object."""
        return {
            "error": {
                "message": self.message,
                "type": self.error_type,
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None = None, code: str | None = None) -> HttpError:
    """Return the error for a request that is wrong."""
    return HttpError(INVALID_REQUEST.http, message, param=param, code=code)
