"""The errors of this project: one exception, and one table of the kinds of failure.

Every expected failure is a `NemotronError`: what happened, where, and what to do next. The command
line prints it as a single line and exits with its exit code. It catches nothing else, so a
traceback always means a bug.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from http import HTTPStatus


class ErrorKind(enum.Enum):
    """Kind of a failure, as the sender of a request has to handle it.

    The value is the prefix of an error's text on Triton's wire. The prefix distinguishes the kinds
    there, because inside a gRPC stream Triton 2.51 loses the status code. (Its header
    `triton_grpc_error` would keep the code, but with that header a server crashes after a client
    has cancelled a stream.)

    >>> ErrorKind.of_text("in ensemble: server overloaded: 64 requests run or wait already")
    <ErrorKind.OVERLOADED: 'server overloaded: '>
    """

    REFUSED = "request refused: "
    """The request or the input is invalid. Sending it again does not help."""
    OVERLOADED = "server overloaded: "
    """The queue is full. The request may succeed later."""
    SHUTTING_DOWN = "server shutting down: "
    """The server lets running requests finish and accepts no others."""
    UNREACHABLE = "server unreachable: "
    """There is no server or no engine at the moment, or the connection to it broke."""
    TIMED_OUT = "deadline exceeded: "
    """The time allowed for the request ended before its answer was complete."""
    FAILED = "engine failed: "
    """The server failed on a valid request."""
    INTERRUPTED = "interrupted: "
    """The sender stopped the request: with Ctrl-C, or by disconnecting."""

    @property
    def codes(self) -> ErrorCodes:
        """The codes of this kind in each protocol."""
        return ERROR_CODES[self]

    @classmethod
    def of_text(cls, text: str) -> ErrorKind | None:
        """Return the kind whose prefix comes first in a text, or `None` if no prefix is in it."""
        matches = [(text.index(kind.value), kind) for kind in cls if kind.value in text]
        return min(matches, key=lambda match: match[0])[1] if matches else None

    @classmethod
    def split(cls, text: str) -> tuple[ErrorKind | None, str]:
        """Return the kind of an error's text on Triton's wire, and the text from its prefix on.

        The text comes back as one line. What Triton puts before the prefix is left out.

        >>> ErrorKind.split("in ensemble: engine failed: out of memory")
        (<ErrorKind.FAILED: 'engine failed: '>, 'engine failed: out of memory')
        """
        line = " ".join(text.split())
        kind = cls.of_text(line)
        return kind, line if kind is None else line[line.index(kind.value) :]


@dataclass(frozen=True)
class ErrorCodes:
    """The codes of one kind of failure in each protocol."""

    triton: str
    """Name of the code in `triton_python_backend_utils.TritonError`."""
    http: int
    """HTTP status."""
    openai_type: str
    """`error.type` of OpenAI's API."""
    openai_code: str | None = None
    """`error.code` of OpenAI's API."""
    retry: bool = False
    """Whether HTTP responses carry `Retry-After`."""
    exit_code: int = 1
    """Exit code of the command `nemotron`."""


CLIENT_CLOSED_REQUEST = 499
"""nginx's status for logs: the client disconnected before it received the response."""

ERROR_CODES = {
    ErrorKind.REFUSED: ErrorCodes("INVALID_ARG", HTTPStatus.BAD_REQUEST, "invalid_request_error"),
    ErrorKind.OVERLOADED: ErrorCodes(
        "UNAVAILABLE", HTTPStatus.TOO_MANY_REQUESTS, "overloaded_error", "overloaded", retry=True
    ),
    ErrorKind.SHUTTING_DOWN: ErrorCodes(
        "UNAVAILABLE", HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "unavailable", retry=True
    ),
    ErrorKind.UNREACHABLE: ErrorCodes(
        "UNAVAILABLE", HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "unavailable", retry=True
    ),
    ErrorKind.TIMED_OUT: ErrorCodes(
        "UNAVAILABLE", HTTPStatus.GATEWAY_TIMEOUT, "server_error", "timeout"
    ),
    ErrorKind.FAILED: ErrorCodes(
        "INTERNAL", HTTPStatus.INTERNAL_SERVER_ERROR, "server_error", "engine_failed"
    ),
    ErrorKind.INTERRUPTED: ErrorCodes(
        "CANCELLED", CLIENT_CLOSED_REQUEST, "server_error", "cancelled", exit_code=130
    ),
}
"""The only table from kinds of failure to the codes of each protocol."""


class NemotronError(Exception):
    """An expected failure, as one line for a person.

    >>> print(NemotronError("TP 3 does not divide 16 heads", where="--tp", remedy="use 1, 2 or 4"))
    TP 3 does not divide 16 heads [--tp]: use 1, 2 or 4
    """

    kind = ErrorKind.REFUSED
    """Kind of the class of errors; an instance may have another kind."""

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        remedy: str | None = None,
        kind: ErrorKind | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        if kind is not None:
            self.kind = kind
        self.exit_code = self.kind.codes.exit_code
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.what
        if self.where is not None:
            text += f" [{self.where}]"
        if self.remedy is not None:
            text += f": {self.remedy}"
        return "".join(
            # A name from a checkpoint must not move the cursor of the terminal that shows it.
            c if c.isprintable() else c.encode("unicode_escape").decode()
            for c in " ".join(text.split())
        )
