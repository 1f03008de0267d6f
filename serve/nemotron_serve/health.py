"""Whether a server is fit to be asked: looked at every second, told on an HTTP port of its own."""

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

from nemotron_build.lanes import LANES
from nemotron_build.profile import Profile
from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_serve.server import TritonServer

LOOK_SECONDS = 1.0
FAILURES = 2
"""In a row: an engine that answers with an error twice is dead."""
CANARY = {"input_ids": [5], "input_lengths": 1, "request_output_len": 1}
"""One token after an end of turn."""
WORKING_REFUSALS = (ErrorKind.OVERLOADED, ErrorKind.SHUTTING_DOWN)
"""Kinds of errors with which a working engine may answer the canary."""
MAX_LINE = 200
STUB = re.compile(rb"triton_python_backend_stub\0.*?/models/(\w+)/", re.DOTALL)
"""The command line of the process that a Python model runs in."""


class Watch:
    """Tells a working engine from a dead one.

    A process of a model that has ended says it at once. An engine that has made a step since the
    last look works. One that has not is either idle or stuck, and is asked for one token. An error
    says that it is dead; silence may be a long step, and counts as death only after the profile's
    `timeouts.stall`.
    """

    def __init__(self, server: TritonServer, profile: Profile) -> None:
        self._server = server
        self._metric = LANES[profile.lane].progress_metric
        self._stall = profile.timeouts.stall
        self._models: dict[int, str] = {}
        self._progress: list[float] = []
        self._worked = time.monotonic()
        self._failures = 0
        self.has_worked = False
        """At any time so far."""

    def look(self) -> str | None:
        """Why the server must end; None while it need not."""
        if self._server.process.poll() is not None:
            return f"Triton ended with status {self._server.process.returncode}"
        for process, name in self._models.items():
            if model_of(process) != name:  # Triton would start it anew; its requests would hang
                return f"the process of the model {name} has ended"
        self._models |= model_processes(self._server.process.pid)
        progress = self._server.metric(self._metric)
        if progress != self._progress:
            first, self._progress = not self._progress, progress
            if not first:
                self._works()
                return None
        status, text = self._server.ask("tensorrt_llm", CANARY, LOOK_SECONDS)
        if status == HTTPStatus.OK or ErrorKind.of_text(text) in WORKING_REFUSALS:
            self._works()
            return None
        if status:
            self._failures += 1
            if self._failures >= FAILURES:
                return f"the engine answers with an error: {text[:MAX_LINE]}"
        silent = time.monotonic() - self._worked
        if silent > self._stall:
            return f"the engine has done nothing for {silent:.0f} seconds"
        return None

    def _works(self) -> None:
        self._worked = time.monotonic()
        self._failures = 0
        self.has_worked = True


def model_processes(triton: int) -> dict[int, str]:
    """Process id → name of each Python model of the Triton with that process id."""
    children: list[str] = []
    for listed in Path(f"/proc/{triton}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended meanwhile
            children += listed.read_text().split()
    return {int(child): name for child in children if (name := model_of(int(child)))}


def model_of(process: int) -> str | None:
    """The Python model that runs in a process; None if none does, or no longer."""
    try:
        stub = STUB.search(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return None
    return stub[1].decode() if stub else None


class Health:
    """`GET /health/live` and `/health/ready`, for whoever runs the server; a context manager.

    Ready means that the engine has answered lately and nobody has asked the server to stop.
    """

    def __init__(self, address: str, port: int, is_ready: Callable[[], bool]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name that the library calls
                if self.path not in ("/health/live", "/health/ready"):
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                fit = self.path == "/health/live" or is_ready()
                body = json.dumps({"ready": is_ready()}).encode()
                self.send_response(HTTPStatus.OK if fit else HTTPStatus.SERVICE_UNAVAILABLE)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """A probe every second is no news."""

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
