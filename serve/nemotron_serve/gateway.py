"""The HTTP gateway beside Triton: a process of its own, started and drained with it."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_serve.server import Endpoints
from nemotron_serve.triton import die_with_parent

POLL_SECONDS = 0.05
LIBRARIES = ("starlette", "uvicorn", "prometheus_client", "grpc", "tritonclient", "sentencepiece")


def check_gateway(profile: Profile) -> None:
    """NemotronError if the profile wants a gateway and its libraries are not here."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if profile.ports.gateway is not None and missing:
        raise NemotronError(
            f"the gateway needs {', '.join(missing)}",
            remedy="pip install 'nemotron-triton[gateway]', or serve with --no-gateway",
        )


def gateway_command(engine: Path, profile: Profile, ends: Endpoints, port_file: Path) -> list[str]:
    """`nemotron gateway` for the Triton that listens at `ends`."""
    return [
        *(sys.executable, "-m", "nemotron_cli", "gateway"),
        f"--triton={ends.address}:{ends.grpc}",
        f"--address={ends.address}",
        f"--port={profile.ports.gateway}",
        f"--tokenizer={engine / TOKENIZER_NAME}",
        f"--request-timeout={profile.timeouts.request}",
        f"--drain-timeout={profile.timeouts.drain}",
        f"--port-file={port_file}",
    ]


class Gateway:
    """A context manager: entered, it listens on `port`; left, it is gone.

    Its access log and errors go to this process's standard error. API keys come from the
    environment, as with `nemotron gateway` itself.
    """

    def __init__(self, engine: Path, profile: Profile, ends: Endpoints) -> None:
        self._engine = engine
        self._profile = profile
        self._ends = ends

    def __enter__(self) -> Gateway:
        with tempfile.TemporaryDirectory(prefix="nemotron-") as folder:
            port_file = Path(folder, "port.json")
            command = gateway_command(self._engine, self._profile, self._ends, port_file)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for us, who then drain
                preexec_fn=die_with_parent,  # noqa: PLW1509  # calls nothing but the kernel
            )
            try:
                self.port = self._wait_for(port_file)
            except BaseException:
                self._process.kill()
                self._process.wait()
                raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()

    def why_ended(self) -> str | None:
        """None while it runs."""
        if self._process.poll() is None:
            return None
        return f"the gateway ended with status {self._process.returncode}"

    def drain(self) -> None:
        """Take no more requests; it ends when the running ones are answered."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Until it has ended by itself, which it does within the profile's time to drain."""
        self._process.wait()

    def _wait_for(self, port_file: Path) -> int:
        deadline = time.monotonic() + self._profile.timeouts.startup
        while not port_file.exists():
            if (why := self.why_ended()) is not None:
                raise NemotronError(why)
            if time.monotonic() > deadline:
                raise NemotronError("the gateway does not start")
            time.sleep(POLL_SECONDS)
        return int(json.loads(port_file.read_text(encoding="utf-8"))["gateway"])
