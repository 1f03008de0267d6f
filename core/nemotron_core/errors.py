"""How this project fails: one exception, and one table of the kinds of failure.

Every expected failure is a `NemotronError`: what happened, where, and what to do next. The command
line prints it as a single line and exits with its exit code. It catches nothing else, so a
traceback always means a bug.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from http import HTTPStatus


class ErrorKind(enum.Enum):
    """What a failure means for whoever asked.

    The value is how an error's text begins on Triton's wire. The text is what tells the kinds
    apart there: inside a gRPC stream Triton 2.51 loses the status code. (Its header
    `triton_grpc_error` would keep the code, but a server with that header crashes when a client
    has cancelled a stream before.)

    >>> ErrorKind.of_text("in ensemble: server overloaded: 64 requests run or wait already")
    <ErrorKind.OVERLOADED: 'server overloaded: '>
    """

    REFUSED = "request refused: "
    """The request or the input is wrong; sending it again does not help."""
    OVERLOADED = "server overloaded: "
    """As many requests wait as may; later it may work."""
    SHUTTING_DOWN = "server shutting down: "
    """The server lets running requests finish and takes no more."""
    UNREACHABLE = "server unreachable: "
    """There is no server, or it went away; only clients raise this."""
    TIMED_OUT = "deadline exceeded: "
    """The time allowed for the request was over before its answer."""
    FAILED = "engine failed: "
    """The server failed on a request that was right."""
    INTERRUPTED = "interrupted: "
    """Whoever asked stopped it: Ctrl-C, or a client that disconnected."""

    @property
    def codes(self) -> ErrorCodes:
        """How this kind crosses each door."""
        return ERROR_CODES[self]

    @classmethod
    def of_text(cls, text: str) -> ErrorKind | None:
        """Return the kind of an error's text from Triton, or `None` if it is not one of ours."""
        matches = [(text.index(kind.value), kind) for kind in cls if kind.value in text]
        return min(matches, key=lambda match: match[0])[1] if matches else None


@dataclass(frozen=True)
class ErrorCodes:
    """One kind of failure in the terms of each protocol."""

    triton: str
    """Name of the code in `triton_python_backend_utils.TritonError`."""
    http: int
    """HTTP status."""
    openai_type: str
    """`error.type` of OpenAI's API."""
    openai_code: str | None = None
    """`error.code` of OpenAI's API."""
    retry: bool = False
    """Whether HTTP answers carry `Retry-After`."""
    exit_code: int = 1
    """Exit code of the command `nemotron`."""


CLIENT_CLOSED_REQUEST = 499
"""nginx's status, for logs: the client disconnected before it had an answer."""

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
"""The one table of what each kind of failure is on each door."""


class NemotronError(Exception):
    """An expected failure, as one line for a person.

    >>> print(NemotronError("TP 3 does not divide 16 heads", where="--tp", remedy="use 1, 2 or 4"))
    TP 3 does not divide 16 heads [--tp]: use 1, 2 or 4
    """

    kind = ErrorKind.REFUSED
    """The kind of a class of errors; an instance may have another."""

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
