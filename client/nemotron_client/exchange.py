"""One request and its answer, without the wire: what the waiting and the async client share."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from nemotron_client.exceptions import (
    ClientError,
    ConnectionFailed,
    RequestRefused,
    RequestTimeout,
    ServerFailed,
    from_rpc_error,
    from_stream_error,
)
from nemotron_client.request import generation_request
from nemotron_client.response import read_outputs, read_piece
from nemotron_client.settings import Timeouts
from nemotron_core.generation import Generation, Piece, Prompt

MODEL = "ensemble"
ENGINE_MODEL = "tensorrt_llm"
STOP_TIMEOUT = 5.0

Messages = Sequence[Mapping[str, Any]]


class Exchange:
    """Takes a call's responses one by one and knows when the answer is whole.

    RequestRefused if the request does not fit on the wire.
    """

    def __init__(
        self, url: str, model: str, prompt: Prompt, generation: Generation, *, stream: bool
    ) -> None:
        self._url = url
        self.request_id = uuid.uuid4().hex
        try:
            self.request = generation_request(
                model, self.request_id, prompt, generation, stream=stream
            )
        except ValueError as error:
            raise RequestRefused(str(error)) from error
        self._unfinished = generation.num_return_sequences or 1
        self.begun = False
        """Something of the answer has come."""
        self.is_over = False
        """The server does no more for this request."""

    def take(self, response: service_pb2.ModelStreamInferResponse) -> Piece:
        """The piece in a response; the ClientError that the server sent instead of one."""
        if response.error_message:
            self.is_over = True
            raise from_stream_error(response.error_message)
        try:
            outputs = read_outputs(response.infer_response)
            piece = read_piece(outputs)
        except KeyError as error:
            model = response.infer_response.model_name
            raise ServerFailed(f"model {model} does not answer with {error}") from error
        except ValueError as error:
            raise ServerFailed(str(error)) from error
        self.begun = True
        if "finish_reason" not in outputs:
            self._unfinished = 0  # the classic ensemble: the end of the stream is its only sign
        elif piece.finish_reason:
            self._unfinished -= 1
            self.is_over = self._unfinished <= 0
        return piece

    def end(self) -> None:
        """The stream has ended by itself; ServerFailed if the answer has not."""
        self.is_over = True
        if self._unfinished > 0:
            raise ServerFailed("the stream ended before the answer did")

    def failure(self, error: grpc.RpcError, late: str) -> ClientError:
        """The exception for a call that failed; `late` names the timeout that cancelled it."""
        if late or error.code() is grpc.StatusCode.CANCELLED:
            return self.cancelled(late)
        failure = from_rpc_error(error, self._url)
        # Without a connection there is nobody to stop it.
        self.is_over = self.is_over or isinstance(failure, RequestRefused | ConnectionFailed)
        return failure

    def cancelled(self, late: str) -> ClientError:
        """The exception for a call that this client cancelled itself."""
        if late:
            return RequestTimeout(late)
        self.is_over = True  # with the channel all its calls end
        return ConnectionFailed("the client was closed before the answer was whole")


class Patience:
    """How long the next piece may take. The clock stands still while the caller has the word."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._begun = False
        self.due = math.inf
        """When it is over, by `time.monotonic`."""
        self.late = ""
        """What to tell once it was over."""

    @property
    def is_endless(self) -> bool:
        return self._timeouts.first_token is None and self._timeouts.between_tokens is None

    def begin(self) -> None:
        """A piece is awaited from now on."""
        seconds = self._timeouts.between_tokens if self._begun else self._timeouts.first_token
        self.due = math.inf if seconds is None else time.monotonic() + seconds

    def rest(self) -> None:
        """It has come."""
        self._begun = True
        self.due = math.inf

    def is_over(self, now: float) -> bool:
        """Whether the call is to be cancelled; says why in `late`."""
        if now < self.due:
            return False
        name = "between_tokens" if self._begun else "first_token"
        self.late = f"no {'further ' * self._begun}token in {getattr(self._timeouts, name)} seconds"
        return True


def only_one(generation: Generation) -> None:
    """RequestRefused for several answers where one is returned."""
    if (generation.num_return_sequences or 1) > 1:
        raise RequestRefused(
            "num_return_sequences asks for several answers: iterate over generate()"
        )
