"""A Triton process: started, watched until ready, drained, cleaned up after."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nemotron_build.engine_folder import open_engine
from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError
from nemotron_core.metrics import RUNNING_METRIC
from nemotron_serve.repository import render_repository
from nemotron_serve.triton import EXIT_SECONDS, find_triton, log_lines, log_tail, shared_memory

POLL_SECONDS = 0.05
IDLE_POLLS = 5
"""Between two models a request is in neither's count, so one look is not enough."""
BUSY_METRICS = (RUNNING_METRIC, "nv_inference_pending_request_count")
LOAD_FAILURE = "failed to load "
# What no client needs and no stranger should reach: closed behind a key that nobody knows.
RESTRICTED_APIS = "shared-memory,model-repository,logging,trace"


@dataclass(frozen=True)
class Endpoints:
    """Where a running server listens."""

    address: str
    http: int
    grpc: int
    metrics: int
    health: int
    gateway: int | None


class TritonServer:
    """An engine behind a real tritonserver; a context manager that leaves nothing behind.

    Entering starts the process and returns when every model is ready; KeyboardInterrupt if
    `give_up` is set before. NemotronError says which port is taken, or shows the end of Triton's
    log if it did not start. `traces` is the URL of an OpenTelemetry collector.
    """

    def __init__(
        self,
        engine: Path,
        profile: Profile,
        *,
        log_file: Path | None = None,
        give_up: threading.Event | None = None,
        traces: str | None = None,
    ) -> None:
        self._profile = profile
        self._traces = traces
        self._engine = engine
        self._log_file = log_file
        self._give_up = give_up or threading.Event()
        self._cleanup = ExitStack()

    def __enter__(self) -> TritonServer:
        with ExitStack() as stack:
            self.endpoints = choose_ports(self._profile)
            folder = Path(tempfile.mkdtemp(prefix="nemotron-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self.log = self._log_file or folder / "triton.log"
            prefix = stack.enter_context(shared_memory())
            self._drain_file = folder / "draining"
            triton = find_triton(self._profile, folder)
            render_repository(
                self._engine,
                open_engine(self._engine),
                self._profile,
                folder / "models",
                drain_file=self._drain_file,
            )
            command = triton.command(folder / "models", prefix) + leader_options(
                self.endpoints, self._traces
            )
            self.process = triton.start(command, self.log)
            stack.callback(self._kill)
            self._wait_until_ready()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._cleanup:  # kills what still runs
            if kind is None:
                self.stop()

    def refuse_new(self) -> None:
        """Take no more requests."""
        self._drain_file.touch()

    def stop(self) -> None:
        """Take no more requests and let the running ones finish, as long as the profile allows.

        Triton's own way down is not enough: on SIGTERM it waits for running ensembles, but no
        longer gives their steps anything to do. So it gets the signal when nothing runs any more.
        """
        self.refuse_new()
        if self._becomes_idle():
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(EXIT_SECONDS)
        self._kill()

    def _becomes_idle(self) -> bool:
        deadline = time.monotonic() + self._profile.timeouts.drain
        idle = 0
        while self.process.poll() is None and time.monotonic() < deadline:
            idle = idle + 1 if self._is_idle() else 0
            if idle == IDLE_POLLS:
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _is_idle(self) -> bool:
        values = [value for name in BUSY_METRICS for value in self.metric(name)]
        return bool(values) and not any(values)

    def metric(self, name: str) -> list[float]:
        """All values on the metrics page whose name begins so, labels included."""
        status, text = self._request(self.endpoints.metrics, "GET", "/metrics")
        lines = text.splitlines() if status == http.HTTPStatus.OK else []
        return [float(line.split()[-1]) for line in lines if line.startswith(name)]

    def ask(self, model: str, inputs: Mapping[str, object], seconds: float) -> tuple[int, str]:
        """Status (0: no answer in that time) and text of one request for one response."""
        path = f"/v2/models/{model}/generate"
        return self._request(self.endpoints.http, "POST", path, json.dumps(inputs), seconds)

    def _request(
        self, port: int, method: str, path: str, body: str | None = None, seconds: float = 5
    ) -> tuple[int, str]:
        """Asked without the proxy that the environment may name."""
        connection = http.client.HTTPConnection(self.endpoints.address, port, timeout=seconds)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._profile.timeouts.startup
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise NemotronError(
                    f"Triton ended with status {self.process.returncode}: {self._reason()}"
                )
            status, _ = self._request(self.endpoints.http, "GET", "/v2/health/ready")
            if status == http.HTTPStatus.OK:
                return
            if self._give_up.wait(POLL_SECONDS):
                raise KeyboardInterrupt
        raise NemotronError(
            f"not ready after {self._profile.timeouts.startup} seconds: {self._reason()}",
            remedy="raise timeouts.startup in the profile",
        )

    def _reason(self) -> str:
        """What the log says about a failed start: the model that did not load, or its end."""
        for line in log_lines(self.log):
            if LOAD_FAILURE in line:
                # Triton prints the exception's text with its line ends as \n; the stack follows.
                text, _, _ = line[line.index(LOAD_FAILURE) :].partition("\\n\\nAt:")
                return text.replace("\\n", " ").rstrip()
        return log_tail(self.log)

    def _kill(self) -> None:
        """End what is left of it; also the models' processes, which a crash of Triton can leave."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def leader_options(ends: Endpoints, traces: str | None = None) -> list[str]:
    """Triton's options for the process that clients talk to."""
    closed = f"{RESTRICTED_APIS}:key={secrets.token_hex(16)}"
    options = [
        "--strict-readiness=true",
        f"--http-address={ends.address}",
        f"--http-port={ends.http}",
        f"--http-restricted-api={closed}",
        f"--grpc-address={ends.address}",
        f"--grpc-port={ends.grpc}",
        f"--grpc-restricted-protocol={closed}",
        f"--metrics-address={ends.address}",
        f"--metrics-port={ends.metrics}",
    ]
    if traces is not None:
        options += [
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            "--trace-config=rate=1",
            f"--trace-config=opentelemetry,url={traces}",
        ]
    return options


def choose_ports(profile: Profile) -> Endpoints:
    """The profile's ports, free ones for 0; NemotronError if one is taken."""
    chosen: dict[str, Any] = {"gateway": None}
    with ExitStack() as stack:
        for name, port in profile.ports.model_dump(exclude_none=True).items():
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((profile.address, port))
                listener.listen()  # else the next of our own sockets could have the same port
            except OSError as error:
                raise NemotronError(
                    f"the {name} port {port} cannot be used: {error.strerror}",
                    where=f"{profile.address}:{port}",
                    remedy=f"stop what listens there or choose another with --{name}-port",
                ) from error
            chosen[name] = listener.getsockname()[1]
    return Endpoints(profile.address, **chosen)
