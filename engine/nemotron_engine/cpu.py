"""The engine of the CPU lane, whose steps run in a process of their own."""

from __future__ import annotations

import itertools
import math
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from multiprocessing import Pipe
from pathlib import Path

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_engine.admission import Admission
from nemotron_engine.cpu_messages import Ask, Cancel, Report
from nemotron_engine.engine import EngineState, OnChunk
from nemotron_engine.pace import Pace
from nemotron_engine.request import GenerationChunk, GenerationRequest
from nemotron_engine.shared_time import SharedTime

END_SECONDS = 30
"""Time that the process has to end by itself: it may be in the middle of a long step."""

NOT_LOADED = "build the engine again, or give the machine more memory"


class CpuEngine:
    """See `Engine`. One thread sends to the process, so that no caller waits for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.settings = CpuEngineSettings.read(folder)
        self._admission = Admission(self.settings)
        self._numbers = itertools.count()
        self._running: dict[int, tuple[str, OnChunk]] = {}
        self._numbers_by_id: dict[str, int] = {}
        self._lock = threading.Lock()
        self._pace = Pace("cpu")
        self._steps_before = 0
        self._closing = False
        self._lost: NemotronError | None = None
        """Error of a request that came in while the engine failed permanently."""
        self._process = _Process(folder)
        self._report = self._process.first
        self._outbox: queue.SimpleQueue[list[Ask] | Cancel | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._send, "engine requests"), (self._receive, "engine answers"))
        ]
        for thread in self._threads:
            thread.start()

    def submit_all(self, requests: Sequence[tuple[GenerationRequest, OnChunk]]) -> None:
        """See `Engine`."""
        self._admission.admit([request for request, _ in requests])
        now = time.monotonic()
        asks = []
        for request, on_chunk in requests:
            number = next(self._numbers)
            with self._lock:
                self._running[number] = request.request_id, on_chunk
                self._numbers_by_id[request.request_id] = number
            seconds = min(request.seconds or math.inf, self.settings.request_seconds)
            asks.append(Ask(number, request, now + seconds))
        self._outbox.put(asks)

    def cancel(self, request_id: str) -> bool:
        """See `Engine`."""
        with self._lock:
            number = self._numbers_by_id.get(request_id)
        if number is None:
            return False
        self._outbox.put(Cancel(number))
        return True

    def state(self) -> EngineState:
        """See `Engine`."""
        steps = self._steps_before + self._report.steps
        return EngineState(steps, self._admission.waiting, self._report.kv_cache_usage)

    def close(self) -> None:
        """See `Engine`."""
        self._closing = True
        self._outbox.put(None)
        for thread in self._threads:
            thread.join()
        self._process.end()

    def _send(self) -> None:
        while True:
            item = self._outbox.get()
            with self._lock:
                connection = self._process.connection
                if isinstance(item, list):  # without requests that failed with an earlier process
                    item = [ask for ask in item if ask.number in self._running]
            try:
                connection.send(item)
            except OSError:  # the process has ended; `_receive` restarts it, unless it gave up
                if self._lost and isinstance(item, list):
                    for ask in item:
                        self._push(ask.number, self._lost)
            if item is None:
                return

    def _receive(self) -> None:
        while True:
            try:
                report = self._process.receive()
            except (EOFError, OSError):
                report = self._report._replace(chunks=[], failure=self._process.end())
            self._report = report
            self._push_all(report.chunks)
            if self._closing and report.failure is not None:
                return
            if report.failure is not None and not self._restart(report.failure):
                return

    def _push_all(self, chunks: list[tuple[int, GenerationChunk | NemotronError]]) -> None:
        """Pass on chunks, and tell the process until when to hold back the next ones."""
        if not chunks:
            return
        start = time.monotonic()
        self._pace.burst(start, len(self._running))
        self._process.hold.seconds = self._pace.next
        for number, chunk in chunks:
            self._push(number, chunk)
        self._pace.record_cost((time.monotonic() - start) / len(chunks))

    def _push(self, number: int, chunk: GenerationChunk | NemotronError) -> None:
        with self._lock:
            if number not in self._running:
                return
            request_id, on_chunk = self._running[number]
            if last := isinstance(chunk, NemotronError) or chunk.finish_reason is not None:
                del self._running[number], self._numbers_by_id[request_id]
        if last:
            self._admission.leave(request_id)
        try:
            on_chunk(chunk)
        except Exception:  # fails one request: the others need this thread
            traceback.print_exc()
            self._outbox.put(Cancel(number))

    def _restart(self, failure: str) -> bool:
        """Replace a process that failed, and fail all its requests.

        Return whether the new process started.
        """
        self._process.end()
        try:
            process = _Process(self._folder)
        except NemotronError as fatal:
            process = None
            self._lost = NemotronError(failure, remedy="restart the server")
            self._admission.refuse_all(f"the engine failed and did not start again: {fatal}")
        with self._lock:
            if process:
                self._steps_before += self._report.steps
                self._process, self._report = process, process.first
            lost = dict(self._running)
        for number, (request_id, _) in lost.items():
            self._push(number, NemotronError(failure, where=request_id, remedy="ask again"))
        return process is not None


class _Process:
    """The process that runs `cpu_process`.

    Raises `NemotronError` if it cannot load the engine.
    """

    def __init__(self, folder: Path) -> None:
        self.connection, remote = Pipe()
        self.hold = SharedTime()
        """Time until which the process holds back tokens, except an answer's first and last."""
        with remote, closing(self.hold):
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-m", "nemotron_engine.cpu_process"),
                    *(str(folder), str(remote.fileno()), str(self.hold.file)),
                ],
                pass_fds=[remote.fileno(), self.hold.file],
            )
        try:
            self.first = self.receive()
        except (EOFError, OSError):
            raise NemotronError(self.end(), where=folder, remedy=NOT_LOADED) from None
        if self.first.failure is not None:
            self.end()
            raise NemotronError(self.first.failure, where=folder, remedy=NOT_LOADED)

    def receive(self) -> Report:
        """Return the next report. Raises `EOFError` or `OSError` if the process has ended."""
        return Report.unpack(self.connection.recv_bytes())

    def end(self) -> str:
        """Wait for the end of the process, which has nothing to do anymore. Return how it ended."""
        self.connection.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return f"the engine's process ended with code {self._process.wait()}"
