"""What a client is told when something is wrong: OpenAI's form, and the right status."""

from __future__ import annotations

from http import HTTPStatus

from nemotron_client import (
    ClientError,
    ConnectionFailed,
    RequestRefused,
    RequestTimeout,
    ServerFailed,
    ServerOverloaded,
)

RETRY_SECONDS = 1
CLIENT_CLOSED_REQUEST = 499
"""nginx's, for the log: nobody was there to be told."""


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


def overloaded(message: str) -> HttpError:
    return HttpError(
        HTTPStatus.TOO_MANY_REQUESTS,
        message,
        kind="overloaded_error",
        code="overloaded",
        retry=True,
    )


def from_client_error(error: ClientError) -> HttpError:
    """The answer for a failure at Triton."""
    message = str(error)
    if isinstance(error, RequestRefused):
        message = message.removeprefix("request refused: ")
        too_long = "this model holds" in message
        return bad_request(message, code="context_length_exceeded" if too_long else None)
    if isinstance(error, ServerOverloaded):
        return overloaded(message)
    status, code, retry = {
        RequestTimeout: (HTTPStatus.GATEWAY_TIMEOUT, "timeout", False),
        ConnectionFailed: (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", True),
        ServerFailed: (HTTPStatus.INTERNAL_SERVER_ERROR, "engine_failed", False),
    }[type(error)]
    return HttpError(status, message, kind="server_error", code=code, retry=retry)
