"""A Triton process that clients talk to: its start, its drain, its end."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from nemotron_build.lanes import lane_of
from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError
from nemotron_serve.engine_process import EngineProcess
from nemotron_serve.ports import Endpoints
from nemotron_serve.repository import ServerFiles
from nemotron_serve.scratch import remove_shared_memory, shared_memory_prefix
from nemotron_serve.tcp import tcp_connections
from nemotron_serve.triton import find_triton, log_lines, log_tail

POLL_SECONDS = 0.05
IDLE_POLLS = 5
"""Number of polls in a row without a request. A request between two models is in no count."""
HAND_OVER_SECONDS = 5
"""Time after the last request in which Triton has handed the end of its answer to the network."""
SEND_SECONDS = 15
"""Time after the last request in which clients must have taken it."""
TRACE_SECONDS = 6
"""Time in which Triton has reported all spans to a collector; it reports them every five."""
PENDING_METRIC = "nv_inference_pending_request_count"
CLOSED_OPTIONS = {"--model-control-mode", "--load-model", "--allow-http", "--allow-grpc"}
"""Options of Triton with which no server of ours would work."""
LOAD_FAILURE = "failed to load "
RESTRICTED_APIS = "shared-memory,model-repository,logging,trace"
"""APIs that no client needs. Triton takes their key only on its command line, which others can
read. So the key has a control character, with which no client can send it."""


class TritonServer:
    """A real tritonserver before an engine, as a context manager that leaves nothing behind.

    Entering starts the process and returns when all models are ready. Raises `KeyboardInterrupt` if
    `give_up` is set before. Raises `NemotronError` if a port is in use, or with the end of Triton's
    log if Triton does not start.
    """

    def __init__(
        self,
        engine: EngineProcess,
        files: ServerFiles,
        profile: Profile,
        *,
        endpoints: Endpoints,
        log: Path,
        give_up: threading.Event | None = None,
        traces: str | None = None,
    ) -> None:
        self.endpoints = endpoints
        self.log = log
        self._engine = engine
        self._files = files
        self._profile = profile
        self._give_up = give_up or threading.Event()
        self._traces = traces
        self._triton = find_triton(lane_of(profile).deployment(profile).triton, files.folder)
        options = [
            *self._triton.command(files.models, shared_memory_prefix(files.folder)),
            *leader_options(endpoints, traces),
        ]
        check_extra_options(options, profile.triton_args)
        self._command = [*options, *profile.triton_args]

    def __enter__(self) -> TritonServer:
        self._start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error_type is None:
                self.stop()
        finally:
            self._kill()

    def restart(self) -> None:
        """End Triton at once and start it again. The engine keeps running.

        Raises `NemotronError` if Triton does not start.
        """
        self._kill()
        remove_shared_memory(self._files.folder)
        self._start()

    def _start(self) -> None:
        self.process = self._triton.start(self._command, self.log)
        try:
            self._wait_until_ready()
        except BaseException:
            self._kill()
            raise

    def refuse_new(self) -> None:
        """Refuse new requests."""
        self._files.drain_file.touch()

    def stop(self) -> None:
        """Refuse new requests, let running ones finish within `timeouts.drain`, and stop Triton.

        Triton is killed once there is nothing left that it could lose: no request, no client that
        may still get bytes, no spans. Its own shutdown waits for clients that keep connections
        open, and the signal for it is one that Slurm sends to all processes.
        """
        self.refuse_new()
        if self._wait_until_idle():
            self._wait_until_sent()
            if self._traces is not None:
                time.sleep(TRACE_SECONDS)
        self._kill()

    def _wait_until_sent(self) -> None:
        """Wait until no client is connected, or those that are have had time to get all.

        The end of an answer is in no count while Triton hands it to the network.
        """
        ports = {self.endpoints.http, self.endpoints.grpc}
        start = time.monotonic()
        while True:
            connections = [
                connection
                for connection in tcp_connections(self.process.pid)
                if connection.local_port in ports
            ]
            seconds = time.monotonic() - start
            is_sent = not any(connection.unsent for connection in connections)
            if not connections or seconds > SEND_SECONDS:
                return
            if seconds > HAND_OVER_SECONDS and is_sent:
                return
            time.sleep(POLL_SECONDS)

    def _wait_until_idle(self) -> bool:
        """Return whether the server became idle within `timeouts.drain`."""
        deadline = time.monotonic() + self._profile.timeouts.drain
        idle_polls = 0
        while self.process.poll() is None and time.monotonic() < deadline:
            idle_polls = idle_polls + 1 if self._is_idle() else 0
            if idle_polls == IDLE_POLLS:
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _is_idle(self) -> bool:
        pending = self.metric(PENDING_METRIC)
        return bool(pending) and not any(pending) and self._engine.running() == 0

    def metric(self, name: str) -> list[float]:
        """Return all values on the metrics page whose name and labels begin with `name`."""
        status, text = self._request(self.endpoints.metrics, "GET", "/metrics")
        lines = text.splitlines() if status == http.HTTPStatus.OK else []
        return [float(line.split()[-1]) for line in lines if line.startswith(name)]

    def generate(self, model: str, inputs: dict[str, object], seconds: float) -> tuple[int, str]:
        """Send a request for one response. Return the HTTP status and the text of the response.

        The status is 0 if there is no response within `seconds`.
        """
        path = f"/v2/models/{model}/generate"
        return self._request(self.endpoints.http, "POST", path, json.dumps(inputs), seconds)

    def _request(
        self, port: int, method: str, path: str, body: str | None = None, seconds: float = 5
    ) -> tuple[int, str]:
        """Send an HTTP request, without the proxy that the environment may name."""
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
                    f"Triton ended with status {self.process.returncode}: {self._start_failure()}"
                )
            status, _ = self._request(self.endpoints.http, "GET", "/v2/health/ready")
            if status == http.HTTPStatus.OK:
                return
            if self._give_up.wait(POLL_SECONDS):
                raise KeyboardInterrupt
        raise NemotronError(
            f"not ready after {self._profile.timeouts.startup} seconds: {self._start_failure()}",
            remedy="raise timeouts.startup in the profile",
        )

    def _start_failure(self) -> str:
        """Return the log's line about a model that did not load, or else the end of the log."""
        for line in log_lines(self.log):
            if LOAD_FAILURE in line:
                # Triton escapes the line ends in the exception's text. A stack trace follows.
                text, _, _ = line[line.index(LOAD_FAILURE) :].partition("\\n\\nAt:")
                return text.replace("\\n", " ").rstrip()
        return log_tail(self.log)

    def _kill(self) -> None:
        """Kill Triton and the processes of its models, which survive a crash of Triton."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def leader_options(endpoints: Endpoints, traces: str | None = None) -> list[str]:
    """Return Triton's options for the process that clients talk to."""
    http_address = f"ipv6:{endpoints.address}" if ":" in endpoints.address else endpoints.address
    closed = f"{RESTRICTED_APIS}:key=\x01{secrets.token_hex(16)}"
    options = [
        "--strict-readiness=true",
        f"--http-address={http_address}",
        f"--http-port={endpoints.http}",
        f"--http-restricted-api={closed}",
        f"--grpc-address={endpoints.host}",
        f"--grpc-port={endpoints.grpc}",
        f"--grpc-restricted-protocol={closed}",
        f"--metrics-address={http_address}",
        f"--metrics-port={endpoints.metrics}",
        # Ordinary clients ping idle connections; by default Triton closes these after two pings.
        "--grpc-http2-max-ping-strikes=0",
        "--grpc-keepalive-permit-without-calls=1",
    ]
    if traces is not None:
        options += [
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            "--trace-config=rate=1",
            f"--trace-config=opentelemetry,url={traces}",
        ]
    return options


def check_extra_options(options: Sequence[str], extra: Sequence[str]) -> None:
    """Raise `NemotronError` if a profile's `triton_args` change what the server depends on."""
    taken = {option.partition("=")[0] for option in options} | CLOSED_OPTIONS
    for option in extra:
        if not option.startswith("--") or option.partition("=")[0] in taken:
            raise NemotronError(
                f"{option!r} cannot be passed on to tritonserver",
                where="triton_args",
                remedy="write --name=value; leave out what `serve --dry-run` shows already",
            )
