"""A Triton process: started, watched until ready, drained, cleaned up after."""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from nemotron_build.profile import Profile
from nemotron_build.repository import render_repository
from nemotron_convert.errors import NemotronError
from nemotron_engine.metrics import RUNNING_METRIC

POLL_SECONDS = 0.05
IDLE_POLLS = 5
"""Between two models a request is in neither's count, so one look is not enough."""
EXIT_SECONDS = 20
BUSY_METRICS = (RUNNING_METRIC, "nv_inference_pending_request_count")
LOG_TAIL_LINES = 3
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


class TritonServer:
    """An engine behind a real tritonserver; a context manager that leaves nothing behind.

    Entering starts the process and returns when every model is ready; KeyboardInterrupt if
    `give_up` is set before. NemotronError says which port is taken, or shows the end of Triton's
    log if it did not start.
    """

    def __init__(
        self,
        engine: Path,
        profile: Profile,
        *,
        log_file: Path | None = None,
        give_up: threading.Event | None = None,
    ) -> None:
        self._profile = profile
        self._engine = engine
        self._log_file = log_file
        self._give_up = give_up or threading.Event()
        self._cleanup = ExitStack()

    def __enter__(self) -> TritonServer:
        with ExitStack() as stack:
            self.endpoints = _choose_ports(self._profile)
            folder = Path(tempfile.mkdtemp(prefix="nemotron-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self.log = self._log_file or folder / "triton.log"
            self._shm_prefix = f"nemotron-{secrets.token_hex(8)}-"
            stack.callback(_remove_shared_memory, self._shm_prefix)
            self._drain_file = folder / "draining"
            render_repository(self._engine, folder / "models", drain_file=self._drain_file)
            self.process = self._start(folder)
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

    def stop(self) -> None:
        """Take no more requests and let the running ones finish, as long as the profile allows.

        Triton's own way down is not enough: on SIGTERM it waits for running ensembles, but no
        longer gives their steps anything to do. So it gets the signal when nothing runs any more.
        """
        self._drain_file.touch()
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
        metrics = self._get(self.endpoints.metrics, "/metrics")
        if metrics is None:
            return False
        lines = [line for line in metrics.splitlines() if line.startswith(BUSY_METRICS)]
        return all(float(line.split()[-1]) == 0 for line in lines)

    def _get(self, port: int, path: str) -> str | None:
        """The body of an answer with status 200; a proxy of the environment is not asked."""
        connection = http.client.HTTPConnection(self.endpoints.address, port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read().decode()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return body if response.status == http.HTTPStatus.OK else None

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        triton = _wheel_folder() / "tritonserver"
        backends = _backend_folder(triton, folder / "backends")
        ends = self.endpoints
        closed = f"{RESTRICTED_APIS}:key={secrets.token_hex(16)}"
        command = [
            str(triton / "bin" / "tritonserver"),
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_SECONDS // 2}",
            f"--http-address={ends.address}",
            f"--http-port={ends.http}",
            f"--http-restricted-api={closed}",
            f"--grpc-address={ends.address}",
            f"--grpc-port={ends.grpc}",
            f"--grpc-restricted-protocol={closed}",
            f"--metrics-address={ends.address}",
            f"--metrics-port={ends.metrics}",
            "--allow-gpu-metrics=false",
        ]
        with self._open_log() as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,  # it reads standard input and ends with it
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | _environment(),
                start_new_session=True,  # a terminal's Ctrl-C is for us, who then drain
            )

    def _open_log(self) -> BinaryIO:
        try:
            return self.log.open("wb")
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=self.log) from error

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._profile.timeouts.startup
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise NemotronError(
                    f"Triton ended with status {self.process.returncode}: {self._reason()}"
                )
            if self._get(self.endpoints.http, "/v2/health/ready") is not None:
                return
            if self._give_up.wait(POLL_SECONDS):
                raise KeyboardInterrupt
        raise NemotronError(
            f"not ready after {self._profile.timeouts.startup} seconds: {self._reason()}",
            remedy="raise timeouts.startup in the profile",
        )

    def _reason(self) -> str:
        """What the log says about a failed start: the model that did not load, or its end."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            if LOAD_FAILURE in line:
                # Triton prints the exception's text with its line ends as \n; the stack follows.
                text, _, _ = line[line.index(LOAD_FAILURE) :].partition("\\n\\nAt:")
                return text.replace("\\n", " ").rstrip()
        return " | ".join(lines[-LOG_TAIL_LINES:])

    def _kill(self) -> None:
        """End what is left of it; also the models' processes, which a crash of Triton can leave."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _choose_ports(profile: Profile) -> Endpoints:
    chosen: dict[str, int] = {}
    with ExitStack() as stack:
        for name, port in profile.ports.model_dump().items():
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


def _wheel_folder() -> Path:
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name="pytriton")
    return Path(spec.origin).parent


def _backend_folder(triton: Path, target: Path) -> Path:
    """The Python backend with this Python's stub beside it, as Triton wants to find them."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise NemotronError(
            f"Triton's wheel has no Python backend for Python {version}",
            remedy="use Python 3.10 to 3.12",
        )
    shutil.copytree(triton / "backends" / "python", target / "python")
    shutil.copy(stub, target / "python")
    for file in (target / "python").glob("*triton*"):
        file.chmod(0o755)
    return target


def _environment() -> dict[str, str]:
    """What the stub needs to become this Python: its library, its packages."""
    bundled = _wheel_folder().with_name("nvidia_pytriton.libs")
    libraries = [str(_library_folder()), str(bundled), os.environ.get("LD_LIBRARY_PATH")]
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        # The stub is isolated from PYTHONPATH and the like; it becomes the python3 it finds first.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def _library_folder() -> Path:
    """Where this Python's shared library lies."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    recorded = Path(sysconfig.get_config_var("LIBDIR") or "")
    places = [
        recorded,
        recorded / (sysconfig.get_config_var("MULTIARCH") or ""),  # Debian
        Path(sys.base_prefix) / "lib",  # a Python that was moved after it was built
    ]
    for place in places:
        if (place / name).is_file():
            return place
    raise NemotronError(
        f"no {name}: Triton's Python backend needs the interpreter as a shared library",
        where=sys.base_prefix,
        remedy="install it (Debian: libpython3-dev), or a Python built with --enable-shared",
    )


def _remove_shared_memory(prefix: str) -> None:
    for file in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108  # where shm_open puts it
        file.unlink(missing_ok=True)
