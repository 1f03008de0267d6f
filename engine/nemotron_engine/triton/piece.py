"""What `tensorrt_llm` sends to `postprocessing`, and how it learns that it has arrived."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
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
    They come as datagrams, which wake the sender at once.
    """

    def __init__(self, path: Path, handle: Callable[[bytes], None]) -> None:
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._handle = handle
        self._thread = threading.Thread(target=self._run, name="acknowledgements", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while key := self._socket.recv(KEY_BYTES):
            self._handle(key)


class Acknowledger:
    """The sender's side of `Acknowledgements`."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, key: bytes) -> None:
        """Acknowledge a piece. A lost acknowledgement only delays the next piece."""
        with suppress(OSError):
            self._socket.sendto(key, self._path)
