"""One Ray for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.runs import Asked
from tests.ray.cluster import Cluster, running
from tests.standins.chat_server import ChatServer


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with running(Path(request.config.getoption("ray")).resolve()) as started:
        yield started


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def standin(asked: Asked) -> Iterator[ChatServer]:
    with ChatServer(asked) as server:
        yield server
