"""The client of an engine's process: it checks the engine, and comes back after it."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_engine.client import EngineClient, new_key
from nemotron_engine.protocol import (
    KEY_BYTES,
    Ask,
    Chunk,
    ClientMessage,
    Failed,
    Frames,
    Hello,
    Load,
    Step,
    frame,
)
from tests.engine.process import engine_process
from tests.engine.requests import request
from tests.engine.test_protocol import HELLO
from tests.waiting import WAIT, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    (tmp_path / TOKENIZER_NAME).write_bytes(b"a tokenizer")
    return tmp_path


@dataclass
class Reports:
    """What a client has reported."""

    chunks: queue.Queue[Chunk] = field(default_factory=queue.Queue)
    losses: queue.Queue[NemotronError] = field(default_factory=queue.Queue)
    loads: queue.Queue[Load] = field(default_factory=queue.Queue)

    def chunk(self) -> Chunk:
        return self.chunks.get(timeout=WAIT)


@contextmanager
def client_of(path: Path, **options: Any) -> Iterator[tuple[EngineClient, Reports]]:
    reports = Reports()

    def add(chunks: Any) -> None:
        for chunk in chunks:
            reports.chunks.put(chunk)

    client = EngineClient(
        path,
        on_chunks=add,
        on_lost=reports.losses.put,
        on_load=reports.loads.put,
        **options,
    )
    client.start()
    try:
        yield client, reports
    finally:
        client.close()


def ended(reports: Reports) -> tuple[list[int], str]:
    """Return the tokens and the end of the only request."""
    ids = []
    while True:
        chunk = reports.chunk()
        ids += chunk.token_ids
        if chunk.finish_reason:
            return ids, chunk.finish_reason


def test_keys_are_random() -> None:
    assert {len(new_key()) for _ in range(99)} == {KEY_BYTES}
    assert len({new_key() for _ in range(99)}) == 99


def test_it_asks_cancels_and_queries(folder: Path) -> None:
    with engine_process(folder) as (process, path), client_of(path) as (client, reports):
        hello = client.hello(WAIT)
        assert hello.pid == process.pid
        client.ask([request([1], max_tokens=3)])
        assert ended(reports) == ([2, 3, 4], "length")
        endless = [request([1], max_tokens=10**6, request_id="me") for _ in range(2)]
        client.ask(endless[:1])
        client.cancel([endless[0].key])
        assert ended(reports)[1] == "cancelled"
        client.ask(endless[1:])
        client.cancel(request_ids=["me"])
        assert ended(reports)[1] == "cancelled"
        client.query()
        assert reports.loads.get(timeout=WAIT).running == 0
        assert reports.losses.empty()


def test_while_there_is_no_engine(folder: Path) -> None:
    with client_of(folder / "engine.sock") as (client, reports):
        for call in (lambda: client.hello(0.01), lambda: client.ask([request([1])])):
            with pytest.raises(NemotronError, match="the engine is starting") as caught:
                call()
            assert caught.value.kind is ErrorKind.UNREACHABLE
        client.cancel([b"k" * 16], ["me"])
        client.query()
        with engine_process(folder) as (_, path):
            assert client.hello(WAIT).vocab_size
            client.ask([request([1], max_tokens=1)])
            assert ended(reports) == ([2], "length")
            assert path.exists()
        assert reports.losses.get(timeout=WAIT).kind is ErrorKind.FAILED


def test_it_comes_back_after_the_engine(folder: Path) -> None:
    with client_of(folder / "engine.sock") as (client, reports):
        pids = set()
        for _ in range(2):
            with engine_process(folder) as (process, _):
                until(lambda: client.hello(WAIT).pid == process.pid)  # this round's
                client.ask([request([1], max_tokens=10**6)])
                reports.chunk()
                process.kill()
                loss = reports.losses.get(timeout=WAIT)
                assert str(loss) == "the engine has ended"
                assert loss.kind is ErrorKind.FAILED
                pids.add(process.pid)
                while not reports.chunks.empty():
                    reports.chunks.get()
        assert len(pids) == 2


class Standin:
    """An engine that answers each connection with the next of some scripts, as a context manager.

    A script is sent at once; then the connection stays open until something comes.
    """

    def __init__(self, path: Path, *scripts: bytes) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._scripts = scripts
        self.messages: queue.Queue[ClientMessage] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Standin:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._thread.join(WAIT)
        self._listener.close()

    def _run(self) -> None:
        for script in self._scripts:
            connection, _ = self._listener.accept()
            with connection:
                connection.sendall(script)
                for message in Frames(ClientMessage).feed(connection.recv(1 << 16)):
                    self.messages.put(message)  # type: ignore[arg-type]  # all are of this type


def hello(**fields: Any) -> bytes:
    values = {name: getattr(HELLO, name) for name in Hello.__struct_fields__}
    return frame(Hello(**(values | fields)))


def test_an_engine_of_another_version_is_refused(folder: Path) -> None:
    path = folder / "socket"
    with Standin(path, hello(version=2)), client_of(path) as (client, _):
        for call in (lambda: client.hello(WAIT), lambda: client.ask([request([1])])):
            with pytest.raises(NemotronError, match="speaks version 2 of the protocol, this is 1"):
                call()


def test_an_engine_with_another_tokenizer_is_refused_until_there_is_a_right_one(
    folder: Path,
) -> None:
    path, tokenizer = folder / "engine.sock", folder / TOKENIZER_NAME
    with client_of(path, tokenizer=tokenizer) as (client, _):
        with (
            Standin(path, hello(tokenizer="other")),
            pytest.raises(NemotronError, match="the engine's tokenizer is another one"),
        ):
            client.hello(WAIT)
        path.unlink()
        with engine_process(folder) as (process, _):

            def is_right() -> bool:
                try:
                    return client.hello(WAIT).pid == process.pid
                except NemotronError:
                    return False

            until(is_right)


def test_it_reports_why_an_engine_ended_and_gives_tokens_before(folder: Path) -> None:
    path = folder / "socket"
    last = frame(Step([Chunk(b"k", [1])])) + frame(Failed("out of memory"))
    with Standin(path, hello() + last) as engine, client_of(path) as (client, reports):
        client.hello(WAIT)
        assert reports.chunk().token_ids == [1]
        client.ask([request([1])])
        assert isinstance(engine.messages.get(timeout=WAIT), Ask)
        loss = reports.losses.get(timeout=WAIT)
        assert str(loss) == "the engine has ended: out of memory"


def test_what_is_no_engine_is_lost(folder: Path) -> None:
    path = folder / "socket"
    with Standin(path, hello() + b"HTTP/1.1 400"), client_of(path) as (client, reports):
        assert str(reports.losses.get(timeout=WAIT)) == "the engine has ended"
        with pytest.raises(NemotronError, match="on the engine's socket"):
            client.ask([request([1])])
