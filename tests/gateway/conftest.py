"""One gateway in front of the shared server."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from nemotron_serve.model_server import ModelServer
from tests.gateway.process import Running, running


@pytest.fixture(scope="session")
def triton(server: ModelServer) -> str:
    return f"{server.endpoints.address}:{server.endpoints.http}"


@pytest.fixture(scope="session")
def gateway(triton: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("gateway"), triton) as process:
        yield process


@pytest.fixture(scope="session")
def client(gateway: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as library:
        yield library
