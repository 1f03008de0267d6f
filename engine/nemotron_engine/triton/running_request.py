"""One running request of a Triton model: its chunks and its responses."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import Chunk
from nemotron_engine.triton.answers import Answers, Outcome
from nemotron_engine.triton.prompts import Prompts
from nemotron_engine.triton.tensors import FINAL, Options, error_response


class RunningRequest(ABC):
    """A request whose answers are generated.

    Chunks are added by the thread that reads the engine's socket, and sent by whichever sender
    thread takes the request next. The fields below belong to `RunningRequests` and its lock.
    """

    is_acknowledged = False
    """Whether somebody acknowledges each response: the ensemble's next step, which also learns in
    place of this one that the client has cancelled."""

    def __init__(
        self, prompts: Prompts, sender: Any, names: Collection[str], options: Options
    ) -> None:
        self.prompts = prompts
        self.index_of = {request.key: index for index, request in enumerate(prompts.requests)}
        self.unfinished = set(self.index_of)
        """Keys of the sequences whose last chunk has not come."""
        self.is_ended = False
        """Whether the last response was sent."""
        self.outbox = Outbox()
        self.heartbeat = options.heartbeat and prompts.settings.stream
        """Whether an empty response says, until the first chunk, that the request still runs."""
        self.is_ready = self.is_busy = False
        """Whether it waits for a thread, and whether a thread is sending it."""
        self.is_new = True
        self.in_flight = 0
        """Number of responses that are not acknowledged yet, where they are acknowledged."""
        self.sent_seconds = time.monotonic()
        self.names = names
        self.arrival_ns = time.time_ns()
        self._sender: Any = sender
        # Triton 2.51 crashes if a sender is called after its last response.
        self._sending = threading.Lock()

    @abstractmethod
    def respond(self, chunks: Sequence[Chunk]) -> Outcome:
        """Return what follows from chunks of the engine."""

    def empty_response(self) -> Any:
        """Return a response without tokens, for a heartbeat."""
        raise NotImplementedError

    def send(self, responses: Sequence[Any], *, is_last: bool) -> None:
        """Send responses, the last of them as the request's last one if `is_last`."""
        with self._sending:
            if self.is_ended:
                return
            for number, response in enumerate(responses, 1):
                is_final = is_last and number == len(responses)
                self._sender.send(response, flags=FINAL if is_final else 0)
            if is_last:
                self.is_ended = True
                self._sender = None  # otherwise it could outlive the model

    def fail(self, error: NemotronError) -> None:
        """End the request with an error."""
        self.send([error_response(error)], is_last=True)

    def is_cancelled(self) -> bool:
        """Ask Triton whether the client has cancelled or disconnected."""
        with self._sending:
            return not self.is_ended and bool(self._sender.is_cancelled())


class AnsweredRequest(RunningRequest):
    """A request whose chunks become its client's responses, as text if there is a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None, prompts: Prompts, *arguments: Any) -> None:
        super().__init__(prompts, *arguments)
        self._answers = Answers(tokenizer, prompts.answers, prompts.settings, self.arrival_ns)

    def respond(self, chunks: Sequence[Chunk]) -> Outcome:
        """See `RunningRequest`."""
        return self._answers.respond(
            ((self.index_of[chunk.key], chunk) for chunk in chunks), self.names
        )

    def empty_response(self) -> Any:
        """See `RunningRequest`."""
        return self._answers.empty_response(self.names)
