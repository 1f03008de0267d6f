"""The exceptions of the clients.

::

    ClientError
    ├── RequestRefused      the request is wrong; sending it again does not help
    ├── ServerOverloaded    the queue is full; a later try may work
    ├── RequestTimeout      the answer did not come in the time allowed
    ├── ConnectionFailed    the server is unreachable, or the connection broke
    └── ServerFailed        the server failed on a request that it had accepted
"""

from __future__ import annotations

from http import HTTPStatus

import grpc

from nemotron_core.errors import ErrorKind


class ClientError(Exception):
    """A request failed. The exception's text is one line for a person."""

    kind = ErrorKind.FAILED
    """Kind of the class of failures; an instance may have another kind."""
    request_id = ""
    """Id of the request at the server, if it failed as a request."""

    def __init__(self, message: str = "", kind: ErrorKind | None = None) -> None:
        super().__init__(message)
        if kind is not None:
            self.kind = kind


class RequestRefused(ClientError):
    """The server, or this library, refused the request as wrong; the text says why."""

    kind = ErrorKind.REFUSED


class ServerOverloaded(ClientError):
    """The server accepts no more requests at the moment."""

    kind = ErrorKind.OVERLOADED


class RequestTimeout(ClientError):
    """The time allowed for the request is over."""

    kind = ErrorKind.TIMED_OUT


class ConnectionFailed(ClientError):
    """There is no connection to the server, or it broke."""

    kind = ErrorKind.UNREACHABLE


class ServerFailed(ClientError):
    """The server failed on a request that it had accepted."""

    kind = ErrorKind.FAILED


_BY_STATUS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
    grpc.StatusCode.NOT_FOUND: RequestRefused,
    grpc.StatusCode.ALREADY_EXISTS: RequestRefused,
    grpc.StatusCode.UNIMPLEMENTED: RequestRefused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerOverloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: RequestTimeout,
    grpc.StatusCode.UNAVAILABLE: ConnectionFailed,
}


_BY_HTTP_STATUS: dict[int, type[ClientError]] = {
    HTTPStatus.REQUEST_TIMEOUT: RequestTimeout,
    HTTPStatus.TOO_MANY_REQUESTS: ServerOverloaded,
    HTTPStatus.BAD_GATEWAY: ConnectionFailed,
    HTTPStatus.SERVICE_UNAVAILABLE: ConnectionFailed,
    HTTPStatus.GATEWAY_TIMEOUT: RequestTimeout,
}
"""Any other status from 400 to 499 is a `RequestRefused`, and any other one a `ServerFailed`."""

_TOO_LARGE = "message larger than max"
"""Part of the details with which gRPC refuses a message by its size, on either side."""


_BY_KIND: dict[ErrorKind | None, type[ClientError]] = {
    ErrorKind.REFUSED: RequestRefused,
    ErrorKind.OVERLOADED: ServerOverloaded,
    ErrorKind.SHUTTING_DOWN: ConnectionFailed,
    ErrorKind.UNREACHABLE: ConnectionFailed,
    ErrorKind.TIMED_OUT: RequestTimeout,
}
"""Exception for each kind of error; any other kind is a `ServerFailed`."""


def from_server_text(message: str) -> ClientError:
    """Return the exception for the text of a server's error, by the kind that the text names."""
    kind, text = ErrorKind.split(message)
    return _BY_KIND.get(kind, ServerFailed)(text, kind)


def from_rpc_error(error: grpc.RpcError, url: str) -> ClientError:
    """Return the exception for a failed call to the server at `url`."""
    status, details = error.code(), " ".join((error.details() or "").split())
    if ErrorKind.of_text(details) is not None:
        return from_server_text(details)
    if _TOO_LARGE in details:  # its status is the one of a full queue
        return RequestRefused(details)
    exception_type = _BY_STATUS.get(status, ServerFailed)
    if exception_type is ConnectionFailed:
        return ConnectionFailed(f"no answer from {url}: {details}")
    return exception_type(details or status.name)


def from_http_status(status: int, message: str, url: str) -> ClientError:
    """Return the exception for a response of the server at `url` that is not 200."""
    if ErrorKind.of_text(message) is not None:
        return from_server_text(message)
    text = f"{url} answers with status {status}: {' '.join(message.split()) or 'without a reason'}"
    is_refusal = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return _BY_HTTP_STATUS.get(status, RequestRefused if is_refusal else ServerFailed)(text)
