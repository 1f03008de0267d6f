"""One request and its answer, independent of the wire and of how a client waits for it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_client.exceptions import (
    ClientError,
    ConnectionFailed,
    RequestRefused,
    RequestTimeout,
    ServerFailed,
    from_server_text,
)
from nemotron_client.response import Values, read_pieces
from nemotron_client.settings import RequestOptions, Timeouts
from nemotron_core.generation import Generation, Piece, Prompt

CLOSED = "the client was closed before the answer was whole"

Messages = Sequence[Mapping[str, Any]]


class Exchange:
    """A request, and the state of its answer while the responses are read."""

    def __init__(
        self,
        model: str,
        prompt: Prompt,
        generation: Generation,
        options: RequestOptions,
        *,
        stream: bool,
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.generation = generation
        self.options = options
        self.stream = stream
        self.request_id = options.request_id or secrets.token_hex(16)
        self._unfinished = generation.num_return_sequences or 1
        self.has_started = False
        """Whether a piece of the answer has been read."""
        self.is_over = False
        """Whether the server has ended its work on the request."""

    def read(self, outputs: Mapping[str, Values]) -> list[Piece]:
        """Return the pieces in a response's outputs.

        Raises `ServerFailed` if they have no text, or are not of the contract's types.
        """
        try:
            pieces = read_pieces(outputs, self.generation)
        except KeyError as error:
            raise ServerFailed(f"model {self.model} does not answer with {error}") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise ServerFailed(f"model {self.model} sent a broken response: {error}") from error
        self.has_started = True
        if not {"finish_reason", "output_token_ids"} & outputs.keys():
            # The classic ensemble sends neither: only the end of the stream ends its answer.
            self._unfinished = 0
        finished = sum(bool(piece.finish_reason) for piece in pieces)
        self._unfinished -= finished
        self.is_over = self.is_over or bool(finished and self._unfinished <= 0)
        return pieces

    def error(self, message: str) -> ClientError:
        """Return the exception for an error that the server sent instead of an answer."""
        self.is_over = True
        return from_server_text(message)

    def end(self) -> None:
        """Record that the server ended the stream. Raises `ServerFailed` if answers are missing."""
        self.is_over = True
        if self._unfinished > 0:
            raise ServerFailed("the stream ended before the answer did")

    def failure(self, failure: ClientError) -> ClientError:
        """Return the exception of a failed call, after which the request may still run."""
        # Without a connection the request cannot be stopped.
        self.is_over = self.is_over or isinstance(failure, RequestRefused | ConnectionFailed)
        return failure

    def cancelled(self, timeout_message: str = "") -> ClientError:
        """Return the exception for a call that this client cancelled itself.

        `timeout_message` is not empty if it was cancelled because of a timeout.
        """
        if timeout_message:
            return RequestTimeout(timeout_message)
        self.is_over = True  # closing the connection ended all its requests
        return ConnectionFailed(CLOSED)


class PieceTimeout:
    """The timeout for the next piece. It does not run while the caller handles a piece.

    The caller passes the time by `time.monotonic`.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._has_piece = False
        self.due = math.inf
        """Time at which the next piece is overdue."""
        self.message = ""
        """Message for the user once a piece is overdue."""

    @property
    def is_endless(self) -> bool:
        """Whether no piece is ever overdue."""
        return self._timeouts.first_token is None and self._timeouts.between_tokens is None

    def start(self, now: float) -> None:
        """Start to wait for a piece."""
        timeouts = self._timeouts
        seconds = timeouts.between_tokens if self._has_piece else timeouts.first_token
        self.due = math.inf if seconds is None else now + seconds

    def stop(self) -> None:
        """Stop to wait, because the piece is there."""
        self._has_piece = True
        self.due = math.inf

    def is_over(self, now: float) -> bool:
        """Return whether the piece is overdue, and set `message` if it is."""
        if now < self.due:
            return False
        further = "further " if self._has_piece else ""
        name = "between_tokens" if self._has_piece else "first_token"
        self.message = f"no {further}token in {getattr(self._timeouts, name)} seconds"
        return True


def check_single_answer(generation: Generation) -> None:
    """Raise `RequestRefused` if several answers are requested where only one is returned."""
    if (generation.num_return_sequences or 1) > 1:
        raise RequestRefused(
            "num_return_sequences asks for several answers: iterate over generate()"
        )
