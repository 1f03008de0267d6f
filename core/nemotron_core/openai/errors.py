"""Errors in the form of OpenAI's API."""

from __future__ import annotations

from http import HTTPStatus

RETRY_SECONDS = 1
"""What `Retry-After` says where a later try may work."""


class HttpError(Exception):
    """An answer that is an error; `param` names the key of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = {"Retry-After": str(RETRY_SECONDS)} if retry else {}

    def body(self) -> dict[str, object]:
        """As OpenAI's API sends it."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None = None, code: str | None = None) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)
