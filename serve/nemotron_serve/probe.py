"""A short conversation with the engine's process, to see whether it works."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_engine.client import new_key
from nemotron_engine.protocol import (
    Ask,
    Chunk,
    Drain,
    EngineMessage,
    Failed,
    Frames,
    Hello,
    Load,
    Query,
    Request,
    Step,
    frame,
)

CANARY_IDS = [5]
"""Prompt of the canary: an end of turn."""
READ_BYTES = 1 << 16
Message = TypeVar("Message", Hello, Load, Step)
WORKING_REFUSALS = (ErrorKind.OVERLOADED.name, ErrorKind.SHUTTING_DOWN.name)
"""Kinds of errors with which a working engine may answer the canary."""


class Probe:
    """A connection of its own, as a context manager, whose every step may take `seconds`.

    Every method raises `OSError` (`TimeoutError` among them) if the engine does not answer.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        self._path = path

    def __enter__(self) -> Probe:
        try:
            self._socket.connect(str(self._path))
        except OSError:
            self._socket.close()
            raise
        self._messages = self._read()
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def hello(self) -> Hello:
        """Return the engine's description."""
        return self._next(Hello)

    def load(self) -> Load:
        """Return the engine's load."""
        self._socket.sendall(frame(Query()))
        return self._next(Load)

    def canary(self) -> bool:
        """Have the engine generate one token. Return whether it did, or refused for now.

        Raises `NemotronError` if it fails.
        """
        request = Request(key=new_key(), input_ids=CANARY_IDS, max_tokens=1)
        self._socket.sendall(frame(Ask([request])))
        chunk: Chunk | None = None
        while chunk is None or not chunk.finish_reason:
            (chunk,) = self._next(Step).chunks
        if chunk.finish_reason != "error":
            return True
        if chunk.error_kind not in WORKING_REFUSALS:
            raise chunk.failure()
        return False

    def drain(self) -> None:
        """Let the engine end when its last request has ended."""
        self._socket.sendall(frame(Drain()))

    def _next(self, message_type: type[Message]) -> Message:
        for message in self._messages:
            if isinstance(message, message_type):
                return message
            if isinstance(message, Failed):
                raise ConnectionResetError(message.reason)
        raise ConnectionResetError("the engine has closed the connection")

    def _read(self) -> Iterator[EngineMessage]:
        frames = Frames(EngineMessage)
        while data := self._socket.recv(READ_BYTES):
            try:
                yield from frames.feed(data)  # type: ignore[misc]  # all are of this type
            except NemotronError as error:
                raise ConnectionResetError(str(error)) from error
