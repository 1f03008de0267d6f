"""An engine's process, and connections to its socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nemotron_engine.protocol import (
    Ask,
    Cancel,
    Chunk,
    ClientMessage,
    EngineMessage,
    Frames,
    Hello,
    Load,
    Query,
    Request,
    Step,
    frame,
)
from tests.waiting import WAIT, until

FAKE, WAKING, LORA = (
    f"tests.engine.fake_adapter:{name}" for name in ("FakeAdapter", "WakingAdapter", "LoraAdapter")
)
PROGRAM = ("-m", "nemotron_engine")
Message = TypeVar("Message", Hello, Step, Load)


@contextmanager
def engine_process(
    folder: Path,
    lane: str = FAKE,
    *options: str,
    path: Path | None = None,
    program: tuple[str, ...] = PROGRAM,
    python: str | Path = sys.executable,
    **environment: str,
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Yield a process that listens, and its socket. It is killed at the end."""
    path = path or folder / "engine.sock"
    log = path.with_suffix(".log").open("w")  # an unread pipe would stop a talkative library
    command = [str(python), *program, "--lane", lane, "--socket", str(path), *options]
    process = subprocess.Popen(
        [*command, str(folder)],
        stderr=log,
        text=True,
        env=os.environ | _packages(python) | environment,
    )

    def listens() -> bool:
        assert process.poll() is None, log_of(path)
        try:
            Connection(path).close()
        except OSError:
            return False
        return True

    try:
        until(listens)
        yield process, path
    finally:
        process.kill()
        process.wait()
        log.close()


def log_of(path: Path) -> str:
    """Return what the process with the socket `path` has written."""
    return path.with_suffix(".log").read_text()


def _packages(python: str | Path) -> dict[str, str]:
    """Return the variable that gives another process of this Python this one's packages."""
    return {"PYTHONPATH": os.pathsep.join(sys.path)} if python == sys.executable else {}


class Connection:
    """A client of an engine, as a context manager."""

    def __init__(self, path: Path, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._messages = self._receive()
        self._kept: dict[bytes, list[Chunk]] = {}
        self._hello: Hello | None = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, message: ClientMessage) -> None:
        self.socket.sendall(frame(message))

    def ask(self, *requests: Request) -> None:
        self.send(Ask(list(requests)))

    def cancel(self, *keys: bytes, request_ids: tuple[str, ...] = ()) -> None:
        self.send(Cancel(list(keys), list(request_ids)))

    def hello(self) -> Hello:
        """Return what the engine said first, however late this is asked."""
        return self._hello or self.next(Hello)

    def load(self) -> Load:
        self.send(Query())
        return self.next(Load)

    def next(self, message_type: type[Message]) -> Message:
        """Return the next message of a type. Chunks that come before it are kept."""
        for message in self._messages:
            if isinstance(message, Hello):
                self._hello = message
            if isinstance(message, message_type):
                return message
            if isinstance(message, Step):
                self._keep(message)
        raise ConnectionResetError

    def message(self) -> EngineMessage:
        """Return the next message, whatever it is. Raises `ConnectionResetError` at the end."""
        for message in self._messages:
            return message
        raise ConnectionResetError

    def chunks(self, request: Request) -> list[Chunk]:
        """Return a request's chunks up to its last one."""
        while not ((chunks := self._kept.get(request.key)) and chunks[-1].finish_reason):
            self._keep(self.next(Step))
        return chunks

    def finished(self) -> set[bytes]:
        """Return the keys of the requests whose last chunk has come."""
        return {key for key, chunks in self._kept.items() if chunks[-1].finish_reason}

    def first(self, request: Request) -> None:
        """Return after a request's first chunk."""
        while request.key not in self._kept:
            self._keep(self.next(Step))

    def whole(self, request: Request) -> Chunk:
        """Return a request's last chunk, with all its tokens."""
        chunks = self.chunks(request)
        last = chunks[-1]
        last.token_ids = [id_ for chunk in chunks for id_ in chunk.token_ids]
        return last

    def _keep(self, step: Step) -> None:
        for chunk in step.chunks:
            self._kept.setdefault(chunk.key, []).append(chunk)

    def _receive(self) -> Iterator[EngineMessage]:
        frames = Frames(EngineMessage)
        while data := self.socket.recv(1 << 20):
            yield from frames.feed(data)  # type: ignore[misc]  # all are of this type
