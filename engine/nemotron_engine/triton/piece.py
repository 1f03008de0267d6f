"""What `tensorrt_llm` sends to `postprocessing`, and how it learns that it has arrived."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from nemotron_engine.protocol import KEY_BYTES, Chunk
from nemotron_engine.triton.prompts import AnswerSettings, RequestSettings


class Piece(msgspec.Struct, array_like=True, kw_only=True):
    """A part of the answers to one request.

    Triton cannot combine a stream's later responses with tensors from before the stream, so the
    first piece carries the request's settings.
    """

    keys: list[bytes]
    """In the first piece, the keys of all sequences; later only the first one, as the name."""
    chunks: list[tuple[int, Chunk]]
    """Chunks, each with the index of its answer."""
    answers: list[AnswerSettings] = []
    settings: RequestSettings | None = None
    arrival_ns: int = 0


class Acknowledgements:
    """Receives the name of a request for each piece of it that `postprocessing` has handled.

    Without them, pieces would pile up before `postprocessing` when it is slower than the engine.
    The thread that sends pieces waits for them itself, so that no other one need wake it.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    def close(self) -> None:
        """Close the socket. Nobody waits anymore."""
        self._socket.close()
        os.close(self._wake)

    def wake(self) -> None:
        """End a `wait`."""
        os.eventfd_write(self._wake, 1)

    def wait(self) -> None:
        """Wait until there is something to receive, or for `wake`."""
        self._poll.poll()
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def receive(self) -> Iterator[bytes]:
        """Yield the names that have come."""
        with suppress(BlockingIOError):
            while True:
                yield self._socket.recv(KEY_BYTES)


class Acknowledger:
    """The sender's side of `Acknowledgements`."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, key: bytes) -> None:
        """Acknowledge a piece. A lost acknowledgement only delays the next piece."""
        with suppress(OSError):
            self._socket.sendto(key, self._path)
