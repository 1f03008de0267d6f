"""The running requests of one Triton model: their chunks, their responses, their clients."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from nemotron_core.errors import NemotronError
from nemotron_engine.client import EngineClient
from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import Chunk, Load
from nemotron_engine.triton.answers import Outcome
from nemotron_engine.triton.prompt import Prompts
from nemotron_engine.triton.tensors import FINAL, Options, cancelled, error_response

PIECE_SECONDS = 0.05
"""Least time between two responses of one streamed request: 20 texts a second look smooth. More
responses bring no more tokens, but take the processor from whatever needs it."""
WATCH_SECONDS = 0.1
"""Time between two questions to Triton whether a client has cancelled or disconnected. Each
question takes a message to Triton's process and back."""
HEARTBEAT_SECONDS = 0.25
UNACKNOWLEDGED_SECONDS = 1.0
"""Time after which a response that nobody acknowledged no longer counts."""


class RunningRequest(ABC):
    """A request whose answers are generated.

    Chunks are added by the thread that reads the engine's socket, and sent by whichever sender
    thread takes the request next. The fields below belong to `RunningRequests` and its lock.
    """

    is_acknowledged = False
    """Whether somebody acknowledges each response."""

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
        self.interval = 0.0 if options.chunk_tokens else PIECE_SECONDS
        self.heartbeat = options.heartbeat and prompts.settings.stream
        self.due = 0.0
        self.is_queued = self.is_busy = False
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

    @abstractmethod
    def heartbeat_response(self) -> Any:
        """Return an empty response."""

    @property
    def wants_chunks(self) -> bool:
        """Whether chunks before the last one make a difference."""
        return self.prompts.settings.stream or any(
            answer.stop_strings for answer in self.prompts.answers
        )

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


class RunningRequests:
    """Starts requests at the engine, and sends what comes for them from `threads` threads.

    A request's first chunk is sent at once and before all others; later ones at most every
    `PIECE_SECONDS`, or less often if the threads cannot keep up: what comes meanwhile goes into the
    next response. With a `window`, at most so many responses are unacknowledged at a time, and one
    for each request.
    """

    def __init__(
        self, socket: Path, tokenizer: Path | None, *, threads: int, window: int | None = None
    ) -> None:
        self._window = window
        self._in_flight = 0
        self._requests: dict[bytes, RunningRequest] = {}
        self._ready: deque[RunningRequest] = deque()
        self._later: deque[RunningRequest] = deque()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self.load: Load | None = None
        """The engine's latest answer to a query."""
        self.engine = EngineClient(
            socket,
            tokenizer=tokenizer,
            on_chunks=self._add,
            on_lost=self._fail_all,
            on_load=self._keep_load,
        )
        self._threads = [
            threading.Thread(target=self._send, name="sender", daemon=True) for _ in range(threads)
        ]
        self._threads.append(threading.Thread(target=self._watch, name="watch", daemon=True))
        for thread in self._threads:
            thread.start()
        self.engine.start()

    def close(self) -> None:
        """End all threads, and release what belongs to Triton."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self.engine.close()
        self._requests.clear()

    def start(self, request: RunningRequest) -> None:
        """Begin a request. Raises `NemotronError` if there is no engine."""
        with self._changed:
            self._requests.update(dict.fromkeys(request.index_of, request))
        try:
            self.engine.ask(request.prompts.requests)
        except NemotronError:
            self._forget(request)
            raise

    def acknowledge(self, key: bytes) -> None:
        """Note that a response has reached whoever acknowledges it."""
        with self._changed:
            request = self._requests.get(key)
            if request is not None and request.in_flight:
                self._end_flight(request, 1)

    def _end_flight(self, request: RunningRequest, count: int) -> None:
        request.in_flight -= count
        self._in_flight -= count
        self._queue(request)
        self._changed.notify()

    def _keep_load(self, load: Load) -> None:
        self.load = load

    def _add(self, chunks: Sequence[Chunk]) -> None:
        """Add the chunks of a step to their requests."""
        with self._changed:
            for chunk in chunks:
                request = self._requests.get(chunk.key)
                if request is None:
                    continue
                if chunk.finish_reason:
                    request.unfinished.discard(chunk.key)
                    request.due = 0.0
                request.outbox.put(chunk)
                self._queue(request)
            self._changed.notify_all()

    def _queue(self, request: RunningRequest) -> None:
        """Put a request that has chunks into the queue of those to send."""
        if request.is_queued or request.is_busy or request.in_flight or not request.outbox:
            return
        if not request.wants_chunks and request.unfinished:
            return
        request.is_queued = True
        if request.is_new:
            request.is_new = False
            self._ready.appendleft(request)
        elif request.due <= time.monotonic():
            self._ready.append(request)
        else:
            self._later.append(request)  # nearly in the order in which they are due

    def _next(self) -> RunningRequest | None:
        """Wait for a request to send. Return `None` at the end."""
        while not self._closed.is_set():
            now = time.monotonic()
            while self._later and self._later[0].due <= now:
                self._ready.append(self._later.popleft())
            if self._ready and (self._window is None or self._in_flight < self._window):
                return self._ready.popleft()
            self._changed.wait(self._later[0].due - now if self._later else None)
        return None

    def _send(self) -> None:
        while True:
            with self._changed:
                request = self._next()
                if request is None:
                    return
                request.is_queued, request.is_busy = False, True
                chunks = request.outbox.take()
                if self._ready or self._later:
                    self._changed.notify()
            outcome = request.respond(chunks)
            if outcome.stopped:
                self.engine.cancel(outcome.stopped)
            if request.is_acknowledged:
                with self._changed:
                    request.in_flight += len(outcome.responses)
                    self._in_flight += len(outcome.responses)
            request.send(outcome.responses, is_last=outcome.is_last)
            with self._changed:
                request.is_busy = False
                request.sent_seconds = time.monotonic()
                request.due = request.sent_seconds + request.interval
                self._queue(request)
            if request.is_ended:
                self._forget(request)

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_SECONDS):
            with self._changed:
                requests = set(self._requests.values())
            now = time.monotonic()
            for request in requests:
                self._look_after(request, now)

    def _look_after(self, request: RunningRequest, now: float) -> None:
        if request.is_cancelled():
            request.fail(cancelled())
            self.engine.cancel(list(request.index_of))
            self._forget(request)
        elif request.is_new and request.heartbeat:
            if now - request.sent_seconds >= HEARTBEAT_SECONDS:
                request.sent_seconds = now
                request.send([request.heartbeat_response()], is_last=False)
        elif request.in_flight and now - request.sent_seconds > UNACKNOWLEDGED_SECONDS:
            with self._changed:
                self._end_flight(request, request.in_flight)

    def _fail_all(self, error: NemotronError) -> None:
        with self._changed:
            requests = set(self._requests.values())
        for request in requests:
            request.fail(error)
            self._forget(request)

    def _forget(self, request: RunningRequest) -> None:
        with self._changed:
            for key in request.index_of:
                self._requests.pop(key, None)
            self._in_flight -= request.in_flight
            request.in_flight = 0
            self._changed.notify()


def requested_names(request: Any) -> frozenset[str]:
    """Return the names of the outputs that a client asked for; over HTTP those are all."""
    return frozenset(request.requested_output_names())


def end_with_threads() -> None:
    """Let this process end when one of its threads dies, which would otherwise go unnoticed.

    `nemotron serve` sees that and starts Triton again.
    """

    def end(arguments: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(arguments)
        pb_utils.Logger.log_error(f"a thread has died: {arguments.exc_value}")
        os._exit(1)

    threading.excepthook = end
