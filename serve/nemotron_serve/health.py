"""The health of a server: checked every second, and reported on its own HTTP port."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from nemotron_build.lanes import lane_of
from nemotron_build.profile import Profile
from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_serve.server import TritonServer

CHECK_SECONDS = 1.0
"""Time between two checks, and the time limit of a canary request."""
MAX_FAILURES = 2
"""Number of errors in a row after which an engine counts as dead."""
CANARY = {"input_ids": [5], "input_lengths": 1, "request_output_len": 1}
"""A request for one token after an end of turn."""
WORKING_REFUSALS = (ErrorKind.OVERLOADED, ErrorKind.SHUTTING_DOWN)
"""Kinds of errors with which a working engine may answer the canary."""
MAX_LINE = 200
"""Characters of an error's text that are shown."""
STUB = re.compile(rb"triton_python_backend_stub\0.*?/models/(\w+)/", re.DOTALL)
"""Matches the command line of the process in which a Python model runs."""


class Watch:
    """Distinguishes a working engine from a dead one.

    If the process of a model has ended, the engine is dead. If the engine has made a step since the
    last check, it works. Otherwise it is idle or stuck, and gets a request for one token. Errors in
    reply mean that it is dead. No reply may mean a long step, so the engine counts as dead only
    after the profile's `timeouts.stall`.
    """

    def __init__(self, server: TritonServer, profile: Profile) -> None:
        self._server = server
        self._metric = lane_of(profile).deployment(profile).progress_metric
        self._stall = profile.timeouts.stall
        self._models: dict[int, str] = {}
        self._progress: list[float] = []
        self._last_worked = time.monotonic()
        self._failures = 0
        self.has_worked = False
        """Whether any check so far found a working engine."""

    def failure(self) -> str | None:
        """Check the engine. Return why the server must stop, or `None` if it need not."""
        if self._server.process.poll() is not None:
            return f"Triton ended with status {self._server.process.returncode}"
        for process, name in self._models.items():
            if model_of(process) != name:  # Triton would restart it, and its requests would hang
                return f"the process of the model {name} has ended"
        self._models |= model_processes(self._server.process.pid)
        progress = self._server.metric(self._metric)
        if progress != self._progress:
            first, self._progress = not self._progress, progress
            if not first:
                self._record_work()
                return None
        status, text = self._server.generate("tensorrt_llm", CANARY, CHECK_SECONDS)
        if status == HTTPStatus.OK or ErrorKind.of_text(text) in WORKING_REFUSALS:
            self._record_work()
            return None
        if status:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                return f"the engine answers with an error: {text[:MAX_LINE]}"
        seconds = time.monotonic() - self._last_worked
        if seconds > self._stall:
            return f"the engine has done nothing for {seconds:.0f} seconds"
        return None

    def _record_work(self) -> None:
        self._last_worked = time.monotonic()
        self._failures = 0
        self.has_worked = True


def model_processes(triton: int) -> dict[int, str]:
    """Return the process id and the name of each Python model of a Triton process."""
    children: list[str] = []
    for path in Path(f"/proc/{triton}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            children += path.read_text().split()
    return {int(child): name for child in children if (name := model_of(int(child)))}


def model_of(process: int) -> str | None:
    """Return the name of the Python model that runs in a process, or `None` if none runs."""
    try:
        stub = STUB.search(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return None
    return stub[1].decode() if stub else None


class Health:
    """An HTTP server for `GET /health/live` and `/health/ready`, as a context manager.

    `is_ready` returns whether the engine works and the server has not been asked to stop. Raises
    `NemotronError` if the port cannot be used.
    """

    def __init__(self, address: str, port: int, is_ready: Callable[[], bool]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the library requires this name
                if self.path not in ("/health/live", "/health/ready"):
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                healthy = self.path == "/health/live" or is_ready()
                body = json.dumps({"ready": is_ready()}).encode()
                self.send_response(HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: probes come every second."""

        try:
            self._server = ThreadingHTTPServer((address, port), Handler)
        except OSError as error:
            raise NemotronError(
                f"the health port {port} cannot be used: {error.strerror}",
                where=f"{address}:{port}",
                remedy="stop what listens there or choose another with --health-port",
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
