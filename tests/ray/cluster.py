"""A Ray of its own with two workers, and the processes that run tasks in it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.waiting import WAIT, until

WORKERS = 2
TASK = "ray::"
"""Beginning of a worker's title while it runs a task."""


@dataclass(frozen=True)
class Cluster:
    """A Ray, and the environment that it is installed in."""

    tools: Path
    address: str
    process: subprocess.Popen[bytes]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start a command of `nemotron`."""
        return subprocess.Popen(
            [str(self.tools / "bin" / "nemotron"), *map(str, arguments)],
            env=os.environ | {"RAY_ADDRESS": self.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command of `nemotron` to its end."""
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=WAIT)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def tasks(self, name: str) -> list[psutil.Process]:
        """Return the workers that run a task of this name."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                title = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if title.startswith(TASK) and name in title:
                found.append(process)
        return found


@contextmanager
def running(tools: Path) -> Iterator[Cluster]:
    """Start a Ray of two workers, and end it with all its processes."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short, because sockets are in it
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [str(tools / "bin" / "ray"), "start", "--head", "--block", f"--port={port}"]
    command += [f"--num-cpus={WORKERS}", "--include-dashboard=false", f"--temp-dir={folder}"]
    command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    log = folder / "start.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:

        def is_there() -> bool:
            assert process.poll() is None, log.read_text()
            return b"Ray runtime started" in log.read_bytes()

        until(is_there)
        yield Cluster(tools, f"127.0.0.1:{port}", process)
    finally:
        members = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait()
        for member in members:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        shutil.rmtree(folder, ignore_errors=True)
