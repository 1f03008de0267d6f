"""The real server, over gRPC and through the gateway."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from nemotron_serve.model_server import ModelServer
from tests.data.runs import NEMOTRON, wait_for


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
