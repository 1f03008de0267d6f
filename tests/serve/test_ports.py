"""Ports that are in use: who has them, and the next free ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from nemotron_build.profile import Profile, load_profile
from nemotron_core.errors import NemotronError
from nemotron_serve.ports import choose_ports, listening_process, next_free_port


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def profile_with(**ports: int) -> Profile:
    profile = load_profile("cpu")
    free = dict.fromkeys(type(profile.ports).model_fields, 0) | ports
    return profile.model_copy(update={"ports": profile.ports.model_copy(update=free)})


def test_the_process_in_the_way_and_a_free_port_are_named(taken: int) -> None:
    process = listening_process(taken)
    assert process is not None
    assert process.endswith(f"process {os.getpid()}")
    free = next_free_port("127.0.0.1", taken, set())
    with pytest.raises(NemotronError) as raised:
        choose_ports(profile_with(grpc=taken))
    assert f"the grpc port {taken} cannot be used: {process} listens there" in str(raised.value)
    assert f"serve with --grpc-port {free}" in str(raised.value)
    assert "--free-ports" in str(raised.value)


def test_free_ports_replace_only_those_in_use(taken: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
    endpoints = choose_ports(profile_with(grpc=taken, http=free), take_free=True)
    assert endpoints.http == free
    assert endpoints.grpc > taken
    assert len({endpoints.http, endpoints.grpc, endpoints.metrics, endpoints.health}) == 4


def test_a_free_port_is_no_other_port_of_the_profile(taken: int) -> None:
    first = next_free_port("127.0.0.1", taken, set())
    assert first is not None
    endpoints = choose_ports(profile_with(grpc=taken, http=first), take_free=True)
    assert endpoints.http == first
    assert endpoints.grpc not in (taken, first)


def test_a_port_that_nobody_may_use() -> None:
    profile = profile_with().model_copy(update={"address": "203.0.113.1"})
    with pytest.raises(NemotronError, match="cannot be used: Cannot assign requested address"):
        choose_ports(profile, take_free=True)
