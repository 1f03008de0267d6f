"""What can go wrong between a client and the server.

::

    ClientError
    ├── RequestRefused      the request is wrong; sending it again will not help
    ├── ServerOverloaded    the queue is full; try again later
    ├── RequestTimeout      no answer in the time allowed
    ├── ConnectionFailed    no server there, or it went away
    └── ServerFailed        the server could not do what it should
"""

from __future__ import annotations

import grpc

from nemotron_core.error_kinds import FAILED, OVERLOADED, REFUSED, SHUTTING_DOWN, TIMED_OUT


class ClientError(Exception):
    """Any failure of a request; `str()` is one line for a person."""


class RequestRefused(ClientError):
    """The server (or this library) finds the request wrong and says why."""


class ServerOverloaded(ClientError):
    """The server takes no more requests now."""


class RequestTimeout(ClientError):
    """The time allowed for the request is over."""


class ConnectionFailed(ClientError):
    """There is no connection to the server, or it broke."""


class ServerFailed(ClientError):
    """The server failed on a request that it had accepted."""


_BY_STATUS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
    grpc.StatusCode.NOT_FOUND: RequestRefused,
    grpc.StatusCode.ALREADY_EXISTS: RequestRefused,
    grpc.StatusCode.UNIMPLEMENTED: RequestRefused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerOverloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: RequestTimeout,
    grpc.StatusCode.UNAVAILABLE: ConnectionFailed,
}


_BY_TEXT: dict[str, type[ClientError]] = {
    REFUSED: RequestRefused,
    SHUTTING_DOWN: ConnectionFailed,
    OVERLOADED: ServerOverloaded,
    TIMED_OUT: RequestTimeout,
    FAILED: ServerFailed,
}


def from_stream_error(message: str) -> ClientError:
    """The exception for an error inside a stream, told apart by its text."""
    text = " ".join(message.split())
    for beginning, kind in _BY_TEXT.items():
        _triton, found, reason = text.partition(beginning)
        if found:
            return kind(f"{beginning}{reason}")
    return ServerFailed(text)


def from_rpc_error(error: grpc.RpcError, url: str) -> ClientError:
    """The exception for a failed call to the server at `url`."""
    status, details = error.code(), " ".join((error.details() or "").split())
    kind = _BY_STATUS.get(status, ServerFailed)
    if kind is ConnectionFailed:
        return ConnectionFailed(f"no answer from {url}: {details}")
    return kind(details or status.name)
