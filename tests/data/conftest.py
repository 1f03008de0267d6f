"""The real server, over gRPC and through the gateway; a stand-in; what is made durable."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from nemotron_serve.model_server import ModelServer
from tests.data.runs import NEMOTRON, Asked, wait_for
from tests.standins.chat_server import ChatServer


@pytest.fixture
def url(server: ModelServer) -> str:
    return f"grpc://{server.endpoints.address}:{server.endpoints.grpc}"


@pytest.fixture(scope="session")
def gateway_url(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ports = tmp_path_factory.mktemp("gateway") / "ports.json"
    triton = f"{server.endpoints.address}:{server.endpoints.http}"
    command = [NEMOTRON, "gateway", "--triton", triton, "--port", "0", "--port-file", str(ports)]
    process = subprocess.Popen([*command, "--no-access-log"])
    try:
        wait_for(ports.exists, process)
        port = json.loads(ports.read_text())["gateway"]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def standin(asked: Asked) -> Iterator[ChatServer]:
    with ChatServer(asked) as server:
        yield server


@pytest.fixture
def synced_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of the file at each call of `os.fsync`."""
    sizes: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    return sizes
