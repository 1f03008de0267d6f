"""The HTTP gateway beside Triton: its own process, which is started and drained with Triton."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_core.safe_path import SAFE_PATH
from nemotron_serve.ports import Endpoints
from nemotron_serve.triton import die_with_parent

POLL_SECONDS = 0.05
LIBRARIES = (
    *("starlette", "uvicorn", "prometheus_client", "httptools", "msgspec", "sentencepiece"),
    *("jinja2", "python_multipart"),
)


def check_gateway(profile: Profile, settings: Path | None = None) -> None:
    """Raise `NemotronError` if the profile's gateway has no libraries or its file cannot be read.

    `settings` is the gateway's own file of settings.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if profile.ports.gateway is not None and missing:
        raise NemotronError(
            f"the gateway needs {', '.join(missing)}",
            remedy="pip install 'nemotron-triton[gateway]', or serve with --no-gateway",
        )
    try:
        if settings is not None:
            settings.read_bytes()
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=settings) from error


def gateway_command(
    engine: Path,
    profile: Profile,
    endpoints: Endpoints,
    port_file: Path,
    engine_socket: Path,
    settings: Path | None = None,
    model: str | None = None,
) -> list[str]:
    """Return the `nemotron gateway` command for the Triton that listens at `endpoints`."""
    return [
        *(sys.executable, "-m", "nemotron_cli", "gateway"),
        f"--triton={endpoints.host}:{endpoints.http}",
        f"--address={endpoints.address}",
        f"--tokenizer={engine / TOKENIZER_NAME}",
        f"--engine-socket={engine_socket}",
        f"--request-timeout={profile.timeouts.request}",
        f"--drain-timeout={profile.timeouts.drain}",
        f"--port-file={port_file}",
        *([f"--settings={settings}"] if settings else []),
        *([f"--served-model={model}"] if model else []),
    ]


class Gateway:
    """A running gateway, as a context manager. Inside, it has `port`, `model` and `needs_key`.

    Its access log and its errors go to this process's standard error. As for `nemotron gateway`
    itself, API keys come from the environment. `folder` is for temporary files, and `settings` the
    gateway's own file of settings, which may give the model another name than `model`. Raises
    `NemotronError` if it does not start.
    """

    def __init__(
        self,
        engine: Path,
        profile: Profile,
        endpoints: Endpoints,
        *,
        folder: Path,
        engine_socket: Path,
        settings: Path | None = None,
        model: str | None = None,
    ) -> None:
        self._engine = engine
        self._model = model
        self._profile = profile
        self._endpoints = endpoints
        self._engine_socket = engine_socket
        self._settings = settings
        self._port_file = folder / "gateway.json"

    def __enter__(self) -> Gateway:
        # Where any port will do, the gateway takes one itself: a chosen one may be taken meanwhile.
        self._start(self._profile.ports.gateway and self._endpoints.gateway)
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """Start the gateway again if it has ended. Raises `NemotronError` if it does not start."""
        if self._process.poll() is not None:
            self._start(self.port)

    def _start(self, port: int | None) -> None:
        """Start the process, and read what it says of itself: port, model, whether it has keys."""
        self._port_file.unlink(missing_ok=True)  # of one that was killed
        command = gateway_command(
            self._engine,
            self._profile,
            self._endpoints,
            self._port_file,
            self._engine_socket,
            self._settings,
            self._model,
        )
        self._process = subprocess.Popen(
            [*command, f"--port={port}"],
            env=os.environ | SAFE_PATH,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for `serve`, which drains
            preexec_fn=die_with_parent,  # noqa: PLW1509  # only calls the kernel
        )
        try:
            description = self._wait_for_port()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self.port = int(description["gateway"])
        self.model = str(description["model"])
        self.needs_key = bool(description["needs_key"])

    def drain(self) -> None:
        """Refuse new requests. The gateway ends when all running requests are answered."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait until the gateway has ended by itself, which takes at most `timeouts.drain`."""
        self._process.wait()

    def _wait_for_port(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._profile.timeouts.startup
        while not self._port_file.exists():
            if self._process.poll() is not None:
                raise NemotronError(f"the gateway ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise NemotronError("the gateway does not start")
            time.sleep(POLL_SECONDS)
        description: dict[str, Any] = json.loads(self._port_file.read_text(encoding="utf-8"))
        return description
