"""Servers for measurements: Triton with an engine of the CPU lane, and a gateway before it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from nemotron_build.engine_folder import build_engine, open_engine
from nemotron_build.profile import Profile, load_profile
from nemotron_serve.server import TritonServer

READY_SECONDS = 300
"""Time within which a gateway must be ready or must have ended."""
POLL_SECONDS = 0.05


@contextmanager
def serving(engine: Path) -> Iterator[TritonServer]:
    """Serve an engine folder with its own profile on free ports."""
    with TritonServer(engine, with_free_ports(open_engine(engine).profile)) as server:
        yield server


def build_cpu_engine(checkpoint: Path, folder: Path) -> Path:
    """Build an engine with the profile `cpu`. Returns `folder`, which must not exist."""
    build_engine(checkpoint, folder, load_profile("cpu"))
    return folder


def with_free_ports(profile: Profile) -> Profile:
    """Return the profile with port 0 everywhere, which means any free port."""
    ports = profile.ports.model_copy(update=dict.fromkeys(profile.ports.model_dump(), 0))
    return profile.model_copy(update={"ports": ports})


@dataclass(frozen=True)
class Gateway:
    """A running gateway on this machine."""

    port: int
    process: psutil.Process


@contextmanager
def gateway(triton: str) -> Iterator[Gateway]:
    """Run a gateway before `triton` (`host:port`) in its own process, as in production."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder, "ports.json")
        command = [
            *(sys.executable, "-m", "nemotron_cli", "gateway", "--triton", triton),
            *("--no-access-log", "--port", "0", "--port-file", str(port_file)),
        ]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the gateway is not ready, exit code {process.poll()}")
                time.sleep(POLL_SECONDS)
            port = json.loads(port_file.read_text())["gateway"]
            yield Gateway(port, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(READY_SECONDS)
