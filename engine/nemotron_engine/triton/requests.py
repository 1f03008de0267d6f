"""The running requests of one Triton model: who sends next, and whose client has left."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_engine.client import EngineClient
from nemotron_engine.protocol import Chunk, Load
from nemotron_engine.triton.piece import Acknowledgements
from nemotron_engine.triton.running_request import RunningRequest
from nemotron_engine.triton.tensors import cancelled

WATCH_SECONDS = 0.1
"""Least time between two questions to Triton whether a client has cancelled or disconnected."""
QUESTION_SECONDS = 0.0008
"""Time for each of many requests between two questions about it: each takes a message to Triton's
process and back, which with hundreds of streams would cost as much as their tokens."""
HEARTBEAT_SECONDS = 0.15
WINDOW = 8
"""Number of responses on their way to whoever acknowledges them: enough to keep it busy, too few to
pile up."""
UNACKNOWLEDGED_SECONDS = 1.0
"""Time after which a response that nobody acknowledged no longer counts."""


class RunningRequests:
    """Starts requests at the engine, and sends what comes for them from `threads` threads.

    A request's first chunk is sent before all others. If the threads cannot keep up, what comes
    meanwhile goes into the request's next response. With `acknowledgements`, for which there is one
    thread, at most `WINDOW` responses are unacknowledged at a time, and one for each request.
    """

    def __init__(
        self,
        socket: Path,
        tokenizer: Path | None,
        *,
        threads: int = 1,
        acknowledgements: Acknowledgements | None = None,
    ) -> None:
        self._acknowledgements = acknowledgements
        self._is_waiting = False
        """Whether the thread waits for acknowledgements, and for whatever else it is woken for."""
        self._in_flight = 0
        self._requests: dict[bytes, RunningRequest] = {}
        self._ready: deque[RunningRequest] = deque()
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
            self._wake()
        for thread in self._threads:
            thread.join()
        self.engine.close()
        if self._acknowledgements is not None:
            self._acknowledgements.close()
        self._requests.clear()

    def start(self, request: RunningRequest) -> None:
        """Begin a request. Without an engine it ends with an error."""
        with self._changed:
            self._requests.update(dict.fromkeys(request.index_of, request))
        try:
            self.engine.ask(request.prompts.requests)
        except NemotronError as error:
            # Here, not in the caller: the loss of the engine may have ended it a moment ago.
            request.fail(error)
            self._forget(request)

    def _end_flight(self, request: RunningRequest, count: int) -> None:
        request.in_flight -= count
        self._in_flight -= count
        self._queue(request)
        self._wake()

    def _wake(self) -> None:
        """Let the threads look what there is to do."""
        if self._acknowledgements is None:
            self._changed.notify_all()
        elif self._is_waiting:
            self._is_waiting = False
            self._acknowledgements.wake()

    def _wait(self) -> None:
        """Wait for something to do."""
        if self._acknowledgements is None:
            self._changed.wait()
            return
        self._is_waiting = True
        self._changed.release()
        try:
            self._acknowledgements.wait()
        finally:
            self._changed.acquire()
            self._is_waiting = False

    def _receive(self) -> None:
        """Note which responses have reached whoever acknowledges them."""
        if self._acknowledgements is None:
            return
        for key in self._acknowledgements.receive():  # late ones too: unread, they end every wait
            request = self._requests.get(key)
            if request is not None and request.in_flight:
                self._end_flight(request, 1)

    def _keep_load(self, load: Load) -> None:
        self.load = load

    def _add(self, chunks: Sequence[Chunk]) -> None:
        """Add the chunks of a step to their requests."""
        must_look = False
        with self._changed:
            for chunk in chunks:
                request = self._requests.get(chunk.key)
                if request is None:
                    continue
                if chunk.finish_reason:
                    request.unfinished.discard(chunk.key)
                request.outbox.put(chunk)
                must_look |= self._queue(request)
            if must_look:
                self._wake()

    def _queue(self, request: RunningRequest) -> bool:
        """Queue a request that has chunks. Return whether a waiting thread must look."""
        if request.is_ready or request.is_busy or request.in_flight or not request.outbox:
            return False
        if request.is_new:
            request.is_new = False
            self._ready.appendleft(request)
        else:
            self._ready.append(request)
        request.is_ready = True
        return True

    def _next(self) -> RunningRequest | None:
        """Wait for a request to send. Return `None` at the end."""
        while not self._closed.is_set():
            self._receive()
            is_full = self._acknowledgements is not None and self._in_flight >= WINDOW
            if self._ready and not is_full:
                return self._ready.popleft()
            self._wait()
        return None

    def _send(self) -> None:
        while True:
            with self._changed:
                request = self._next()
                if request is None:
                    return
                request.is_ready, request.is_busy = False, True
                chunks = request.outbox.take()
                if self._ready and self._acknowledgements is None:
                    self._changed.notify()
            outcome = request.respond(chunks)
            stopped = outcome.stopped
            if outcome.is_last:  # by an error, perhaps, of one of several answers
                with self._changed:
                    stopped = list(request.unfinished.union(stopped))
            if stopped:
                self.engine.cancel(stopped)
            if request.is_acknowledged:
                with self._changed:
                    request.in_flight += len(outcome.responses)
                    self._in_flight += len(outcome.responses)
            request.send(outcome.responses, is_last=outcome.is_last)
            with self._changed:
                request.is_busy = False
                request.sent_seconds = time.monotonic()
                self._queue(request)
            if request.is_ended:
                self._forget(request)

    def _watch(self) -> None:
        pause = WATCH_SECONDS
        while not self._closed.wait(pause):
            with self._changed:
                requests = set(self._requests.values())
            pause = max(WATCH_SECONDS, len(requests) * QUESTION_SECONDS)
            now = time.monotonic()
            for request in requests:
                self._look_after(request, now)

    def _look_after(self, request: RunningRequest, now: float) -> None:
        if not request.is_acknowledged and request.is_cancelled():
            request.fail(cancelled())
            self.engine.cancel(list(request.index_of))
            self._forget(request)
        elif request.is_new and request.heartbeat:
            if now - request.sent_seconds >= HEARTBEAT_SECONDS:
                request.sent_seconds = now
                request.send([request.empty_response()], is_last=False)
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
            self._wake()
