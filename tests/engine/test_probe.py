"""Questions to an engine that is in the middle of a long step, or gone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nemotron_engine.probe import Probe
from nemotron_engine.protocol import ClientMessage, Frames, Load, Query, frame

LOAD = Load(steps=7, running=3, waiting=0, kv_cache_usage=None, prompt_tokens=1, generated_tokens=2)
SECONDS = 0.05


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[tuple[Path, threading.Event]]:
    """The socket of an engine whose step lasts until the event is set; then it answers a query."""
    path, step_ends = tmp_path / "engine.sock", threading.Event()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            (message,) = Frames(ClientMessage).feed(connection.recv(4096))
            assert message == Query()
            step_ends.wait()
            with suppress(OSError):  # the client may have given up
                connection.sendall(frame(LOAD))

    thread = threading.Thread(target=serve)
    thread.start()
    yield path, step_ends
    step_ends.set()
    thread.join()
    listener.close()


def test_it_waits_for_the_end_of_a_step(engine: tuple[Path, threading.Event]) -> None:
    path, step_ends = engine
    waits = 0

    def gives_up() -> bool:
        nonlocal waits
        waits += 1
        if waits == 3:
            step_ends.set()
        return False

    with Probe(path, SECONDS, gives_up) as probe:
        assert probe.load() == LOAD
    assert waits >= 3


def test_it_gives_up(engine: tuple[Path, threading.Event]) -> None:
    path, _step_ends = engine
    with Probe(path, SECONDS) as probe, pytest.raises(TimeoutError):
        probe.load()


def test_there_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Probe(tmp_path / "none.sock", SECONDS):
        pass
