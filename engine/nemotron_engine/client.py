"""A connection to the engine's process, which comes back when the engine does."""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_engine.protocol import (
    KEY_BYTES,
    VERSION,
    Ask,
    Cancel,
    Chunk,
    ClientMessage,
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

READ_BYTES = 1 << 20
CONNECT_SECONDS = 0.05
"""Time between two attempts to connect."""
LOST = "the engine has ended"
AWAY = "the engine is starting"


def new_key() -> bytes:
    """Return a random key for a request."""
    return secrets.token_bytes(KEY_BYTES)


def check_hello(hello: Hello, socket: Path, tokenizer: Path | None) -> None:
    """Raise `NemotronError` if the engine speaks another protocol, or has another tokenizer."""
    if hello.version != VERSION:
        raise NemotronError(
            f"the engine speaks version {hello.version} of the protocol, this is {VERSION}",
            where=socket,
            remedy="install the same version on both sides",
        )
    if tokenizer is None:
        return
    if hashlib.sha256(tokenizer.read_bytes()).hexdigest() != hello.tokenizer:
        raise NemotronError(
            "the engine's tokenizer is another one",
            where=tokenizer,
            remedy="serve the folder that the engine's process has loaded",
        )


class EngineClient:
    """Asks the engine at a socket. Safe to use from any thread.

    `on_chunks` is called from one thread with the chunks of each step. `on_lost` is called from the
    same thread when the connection breaks: no chunk comes anymore for what was asked. Then the
    client connects again, for as long as it takes.
    """

    def __init__(
        self,
        path: Path,
        *,
        tokenizer: Path | None = None,
        on_chunks: Callable[[Sequence[Chunk]], None] = lambda chunks: None,
        on_lost: Callable[[NemotronError], None] = lambda error: None,
        on_load: Callable[[Load], None] = lambda load: None,
    ) -> None:
        self._path = path
        self._tokenizer = tokenizer
        self._on_chunks = on_chunks
        self._on_lost = on_lost
        self._on_load = on_load
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._refusal: NemotronError | None = None
        self._hello: Hello | None = None
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine client", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._started_seconds = time.monotonic()
        self._thread.start()

    def hello(self, seconds: float) -> Hello:
        """Return the engine's description.

        Raises `NemotronError` if there was none within `seconds` of the start.
        """
        self._ready.wait(max(0.0, self._started_seconds + seconds - time.monotonic()))
        if self._refusal is not None:
            raise self._refusal
        if self._hello is None:
            raise NemotronError(AWAY, where=self._path, kind=ErrorKind.UNREACHABLE)
        return self._hello

    def ask(self, requests: Sequence[Request]) -> None:
        """Begin requests together. Raises `NemotronError` if there is no connection."""
        self._send(Ask(list(requests)))

    def cancel(self, keys: Sequence[bytes] = (), request_ids: Sequence[str] = ()) -> None:
        """End requests. Does nothing without a connection: then they have ended already."""
        try:
            self._send(Cancel(list(keys), list(request_ids)))
        except NemotronError:
            return

    def query(self) -> None:
        """Ask for the engine's load, which `on_load` gets. Does nothing without a connection."""
        try:
            self._send(Query())
        except NemotronError:
            return

    def close(self) -> None:
        """End the connection. What was asked over it ends as cancelled at the engine."""
        self._closed.set()
        with self._lock:
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _send(self, message: ClientMessage) -> None:
        with self._lock:
            if self._socket is None:
                raise self._refusal or NemotronError(
                    AWAY, remedy="try again in a few seconds", kind=ErrorKind.UNREACHABLE
                )
            try:
                self._socket.sendall(frame(message))
            except OSError as error:  # the reader reports the loss for all
                raise NemotronError(LOST, kind=ErrorKind.FAILED) from error

    def _run(self) -> None:
        while not self._closed.is_set():
            reason = LOST
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(self._path))
                    reason = self._read(connection)
            except OSError:
                """The engine is not there, or the connection broke."""
            except NemotronError as error:
                self._refusal = error
                self._ready.set()
            with self._lock:
                was_connected, self._socket = self._socket is not None, None
            if was_connected and not self._closed.is_set():
                self._on_lost(NemotronError(reason, kind=ErrorKind.FAILED))
            self._closed.wait(CONNECT_SECONDS)

    def _read(self, connection: socket.socket) -> str:
        """Handle messages until the other side closes. Return why it did."""
        frames = Frames(EngineMessage)
        reason = LOST
        while data := connection.recv(READ_BYTES):
            for message in frames.feed(data):
                if isinstance(message, Step):
                    self._on_chunks(message.chunks)
                elif isinstance(message, Load):
                    self._on_load(message)
                elif isinstance(message, Failed):
                    reason = f"{LOST}: {message.reason}"
                elif isinstance(message, Hello):
                    check_hello(message, self._path, self._tokenizer)
                    with self._lock:
                        self._hello, self._refusal, self._socket = message, None, connection
                    self._ready.set()
        return reason
