"""What `postprocessing` acknowledges, and how the sender waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_engine.triton.piece import Acknowledgements, Acknowledger

KEYS = [bytes([number]) * 16 for number in range(3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "acknowledgements.sock"


@pytest.fixture
def sender(path: Path) -> Iterator[Acknowledger]:
    acknowledger = Acknowledger(path)
    yield acknowledger
    acknowledger.close()


@pytest.fixture
def acknowledgements(path: Path) -> Iterator[Acknowledgements]:
    path.write_text("left by an earlier process")
    receiver = Acknowledgements(path)
    yield receiver
    receiver.close()


def test_names_arrive_in_order(acknowledgements: Acknowledgements, sender: Acknowledger) -> None:
    for key in KEYS:
        sender.send(key)
    acknowledgements.wait()
    assert list(acknowledgements.receive()) == KEYS
    assert list(acknowledgements.receive()) == []


def test_a_wait_ends_when_somebody_wakes_it(acknowledgements: Acknowledgements) -> None:
    woken = threading.Event()

    def wait() -> None:
        acknowledgements.wait()
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    acknowledgements.wake()
    thread.join()
    assert woken.is_set()


def test_after_all_was_received_a_wait_takes_no_processor(
    acknowledgements: Acknowledgements, sender: Acknowledger
) -> None:
    sender.send(KEYS[0])
    acknowledgements.wake()
    acknowledgements.wait()
    assert list(acknowledgements.receive()) == KEYS[:1]
    threading.Timer(0.05, acknowledgements.wake).start()
    start = time.monotonic()
    acknowledgements.wait()
    assert time.monotonic() - start >= 0.04


def test_without_a_receiver_nothing_fails(path: Path, sender: Acknowledger) -> None:
    sender.send(KEYS[0])
    assert not path.exists()
