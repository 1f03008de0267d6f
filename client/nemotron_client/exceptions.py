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

import grpc

from nemotron_core.errors import ErrorKind


class ClientError(Exception):
    """A request failed. The exception's text is one line for a person."""

    kind = ErrorKind.FAILED


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


_BY_KIND: dict[ErrorKind | None, type[ClientError]] = {
    ErrorKind.REFUSED: RequestRefused,
    ErrorKind.OVERLOADED: ServerOverloaded,
    ErrorKind.SHUTTING_DOWN: ConnectionFailed,
    ErrorKind.UNREACHABLE: ConnectionFailed,
    ErrorKind.TIMED_OUT: RequestTimeout,
}
"""Exception for each kind of error; any other kind is a `ServerFailed`."""


def from_stream_error(message: str) -> ClientError:
    """Return the exception for an error inside a stream, by the kind that its text names."""
    kind, text = ErrorKind.split(message)
    return _BY_KIND.get(kind, ServerFailed)(text)


def from_rpc_error(error: grpc.RpcError, url: str) -> ClientError:
    """Return the exception for a failed call to the server at `url`."""
    status, details = error.code(), " ".join((error.details() or "").split())
    exception_type = _BY_STATUS.get(status, ServerFailed)
    if exception_type is ConnectionFailed:
        return ConnectionFailed(f"no answer from {url}: {details}")
    return exception_type(details or status.name)
