"""Servers for measurements: `nemotron serve`, its engine's process, and a gateway before Triton."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.measurements.machine import NEMOTRON, ROOT
from bench.measurements.processes import command_of, family
from bench.measurements.synthetic_engine import HZ_VARIABLE, LANE
from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import load_profile

PORTS = ("http", "grpc", "metrics", "health", "gateway")
READY_SECONDS = 300
"""Time within which a server must be ready or must have ended."""
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Server:
    """A running server on this machine, with its ports."""

    pid: int
    """The process that has started all others."""
    http: int
    grpc: int
    metrics: int
    health: int
    gateway: int
    address: str = "127.0.0.1"


@dataclass(frozen=True)
class Engine:
    """A running engine's process."""

    pid: int
    socket: Path


@contextmanager
def serving(engine: Path, *arguments: str) -> Iterator[Server]:
    """Run `nemotron serve` with an engine folder on free ports."""
    with tempfile.TemporaryDirectory() as folder:
        port_file, log = Path(folder, "ports.json"), Path(folder, "serve.log")
        command = [NEMOTRON, "serve", str(engine), *(f"--{port}-port=0" for port in PORTS)]
        command += ["--port-file", str(port_file), *arguments]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            _wait_for(port_file, process, log)
            record = json.loads(port_file.read_text())
            yield Server(process.pid, **{name: record[name] for name in PORTS})
        finally:
            _end(process)


@contextmanager
def synthetic_engine(folder: Path, hz: float) -> Iterator[Engine]:
    """Run the synthetic engine in a process of its own."""
    with tempfile.TemporaryDirectory() as own:
        path, log = Path(own, "engine"), Path(own, "engine.log")
        command = [sys.executable, "-m", "nemotron_engine", "--lane", LANE]
        command += ["--socket", str(path), str(folder.absolute())]
        environment = os.environ | {HZ_VARIABLE: str(hz)}
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        try:
            _wait_for(path, process, log)
            yield Engine(process.pid, path)
            if process.poll() is not None:
                raise SystemExit(f"the engine has ended: {log.read_text(errors='replace')[-2000:]}")
        finally:
            _end(process)


def engine_of(server: Server) -> Engine:
    """Return the engine that `nemotron serve` has started, and wait for it between two engines."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        for pid in family([server.pid]):
            command = command_of(pid)
            if "nemotron_engine" in command and "--socket" in command:
                return Engine(pid, Path(command[command.index("--socket") + 1]))
        time.sleep(POLL_SECONDS)
    raise SystemExit("the server has no engine")


def build_cpu_engine(
    checkpoint: Path, folder: Path, limits: Mapping[str, int] | None = None
) -> Path:
    """Build an engine with the profile `cpu` and other `limits`. Returns `folder`, which is new."""
    profile = load_profile("cpu")
    changed = profile.limits.model_copy(update=limits)
    build_engine(checkpoint, folder, profile.model_copy(update={"limits": changed}))
    return folder


@dataclass(frozen=True)
class Gateway:
    """A running gateway on this machine."""

    port: int
    process: psutil.Process


@contextmanager
def gateway(triton: str) -> Iterator[Gateway]:
    """Run a gateway before `triton` (`host:port`) in its own process, as in production."""
    with tempfile.TemporaryDirectory() as folder:
        port_file, log = Path(folder, "ports.json"), Path(folder, "gateway.log")
        command = [NEMOTRON, "gateway", "--triton", triton]
        command += ["--no-access-log", "--port", "0", "--port-file", str(port_file)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            _wait_for(port_file, process, log)
            port = json.loads(port_file.read_text())["gateway"]
            yield Gateway(port, psutil.Process(process.pid))
        finally:
            _end(process)


def _wait_for(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"not ready: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(POLL_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(READY_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
