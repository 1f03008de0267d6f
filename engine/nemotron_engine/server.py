"""The engine's process: its socket, its clients, and the loop that drives the scheduler."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_engine.adapters.adapter import Adapter
from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import (
    VERSION,
    Ask,
    Cancel,
    ClientMessage,
    Drain,
    EngineMessage,
    Failed,
    Frames,
    Hello,
    LoadLora,
    Loras,
    Query,
    Step,
    UnloadLora,
    frame,
)
from nemotron_engine.scheduler import Scheduler

READ_BYTES = 1 << 20
BUFFER_BYTES = 4 << 20
"""Size of the socket's buffers: a client that stalls for a moment loses nothing by it."""
_CREDENTIALS = struct.Struct("3i")


@dataclass(eq=False)
class _Client:
    """A connection, and what it has not been sent yet."""

    socket: socket.socket
    outbox: Outbox = field(default_factory=Outbox)
    frames: Frames = field(default_factory=lambda: Frames(ClientMessage))
    unsent: bytes = b""
    """The rest of a frame whose beginning is sent."""
    waits: bool = False
    """Whether the socket takes no more at the moment."""


class EngineServer:
    """Serves one engine on a Unix socket until it has drained.

    `group` is the id of a group whose members may connect too. Any other peer must have this
    process's user id.
    """

    def __init__(
        self, adapter: Adapter, lane: str, path: Path, *, tokenizer: str, group: int | None = None
    ) -> None:
        self._adapter = adapter
        self._path = path
        self._group = group
        self._scheduler = Scheduler(adapter)
        self._clients: set[_Client] = set()
        self._left_seconds: float | None = None
        """Time at which a client left last."""
        self._selector = selectors.DefaultSelector()
        settings = adapter.settings
        self._hello = Hello(
            version=VERSION,
            lane=lane,
            library=adapter.library,
            vocab_size=settings.vocab_size,
            max_seq_len=settings.max_seq_len,
            max_batch_size=settings.max_batch_size,
            max_queue_size=settings.max_queue_size,
            request_seconds=settings.request_seconds,
            tokenizer=tokenizer,
            capabilities=adapter.capabilities,
            pid=os.getpid(),
        )

    def load_lora(self, name: str, folder: Path) -> None:
        """Load a LoRA adapter for requests that name it. Raises `NemotronError` if it cannot be."""
        self._scheduler.load_lora(name, folder)

    def run(self, *, orphan_seconds: float | None = None) -> None:
        """Serve until a signal or `Drain`, and then until the last request has ended.

        With `orphan_seconds`, also until there was no client for so long after the first one.
        Raises what the library raises if the engine is lost, after every client was told.
        """
        self._orphan_seconds = orphan_seconds
        self._listener = listen(self._path, self._group)
        with self._listener, self._selector:
            self._register(self._listener, self._accept)
            self._register(self._signals(), self._read_signal)
            if self._adapter.wake_file is not None:
                self._register(self._adapter.wake_file, self._wake)
            try:
                while not (self._scheduler.is_draining and self._scheduler.is_idle):
                    self._turn()
                    if self._is_orphan():
                        break
            except Exception as error:
                for client in list(self._clients):
                    client.unsent += frame(Failed(f"{type(error).__name__}: {error}"))
                raise
            finally:
                for client in list(self._clients):
                    self._flush(client)
                self._path.unlink(missing_ok=True)

    def _turn(self) -> None:
        """Handle what has come, compute one step, and send what it gave."""
        timeout = self._scheduler.seconds_to_deadline()
        if self._adapter.wake_file is None and not self._scheduler.is_idle:
            timeout = 0
        elif timeout is None:
            timeout = self._orphan_seconds
        self._has_woken = False
        for key, _events in self._selector.select(timeout):
            key.data()
        # A library that wakes this process may have something to say without any request.
        if self._has_woken or not self._scheduler.is_idle:
            self._scheduler.collect()
        for client in list(self._clients):
            self._flush(client)

    def _wake(self) -> None:
        self._has_woken = True

    def _is_orphan(self) -> bool:
        """Return whether there was a client, and has been none for `orphan_seconds`."""
        now = time.monotonic()
        if self._clients or self._left_seconds is None:
            return False
        return self._orphan_seconds is not None and now - self._left_seconds >= self._orphan_seconds

    def _register(self, file: socket.socket | int, read: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, read)

    def _signals(self) -> socket.socket:
        """Return a socket that is readable after SIGTERM or SIGINT."""
        self._signal_reader, self._signal_writer = socket.socketpair()
        self._signal_writer.setblocking(False)
        signal.set_wakeup_fd(self._signal_writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        return self._signal_reader

    def _read_signal(self) -> None:
        self._signal_reader.recv(1)
        self._scheduler.is_draining = True

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if not self._is_allowed(connection):
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        client = _Client(connection, unsent=frame(self._hello))
        self._clients.add(client)
        self._register(connection, lambda: self._read(client))

    def _is_allowed(self, connection: socket.socket) -> bool:
        """Return whether the peer has this process's user, or the group that may connect."""
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _pid, user, group = _CREDENTIALS.unpack(data)
        return user == os.geteuid() or (self._group is not None and group == self._group)

    def _read(self, client: _Client) -> None:
        if client not in self._clients:
            return
        try:
            data = client.socket.recv(READ_BYTES)
            if not data:
                raise ConnectionResetError
            for message in client.frames.feed(data):
                self._handle(client, message)
        except BlockingIOError:
            return
        except (OSError, NemotronError):
            self._drop(client)

    def _handle(self, client: _Client, message: ClientMessage | EngineMessage) -> None:
        if isinstance(message, Ask):
            self._scheduler.ask(message.requests, client.outbox)
        elif isinstance(message, Cancel):
            self._scheduler.cancel(message.keys, message.request_ids)
        elif isinstance(message, Query):
            client.unsent += frame(self._scheduler.load())
        elif isinstance(message, Drain):
            self._scheduler.is_draining = True
        elif isinstance(message, LoadLora | UnloadLora):
            client.unsent += frame(self._change_loras(message))

    def _change_loras(self, message: LoadLora | UnloadLora) -> Loras:
        try:
            if isinstance(message, LoadLora):
                self._scheduler.load_lora(message.name, Path(message.folder))
            else:
                self._scheduler.unload_lora(message.name)
        except NemotronError as error:
            return Loras(self._scheduler.loras, str(error), error.kind.name)
        return Loras(self._scheduler.loras)

    def _flush(self, client: _Client) -> None:
        """Send what there is, as far as the socket takes it."""
        try:
            while client.unsent or client.outbox:
                client.unsent = client.unsent or frame(Step(client.outbox.take()))
                client.unsent = client.unsent[client.socket.send(client.unsent) :]
        except BlockingIOError:
            """The selector tells when the socket takes more."""
        except OSError:
            self._drop(client)
            return
        if bool(client.unsent) != client.waits:
            client.waits = not client.waits
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.waits else 0)
            self._selector.modify(client.socket, events, lambda: self._read(client))

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        self._left_seconds = time.monotonic()
        with suppress(KeyError, ValueError):
            self._selector.unregister(client.socket)
        client.socket.close()
        self._scheduler.close_outbox(client.outbox)


def listen(path: Path, group: int | None) -> socket.socket:
    """Return a listening socket at `path`.

    Its folder must be closed to everybody but this user, or this user and `group`; it is made if
    only its parent exists. A socket that an earlier process left is replaced. Raises
    `NemotronError` if the path cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not path.parent.exists():
            _make_folder(path.parent, group)
        mode = path.parent.stat().st_mode
        if mode & (0o007 if group is not None else 0o077):
            raise NemotronError(
                f"other users can reach this folder (mode {mode & 0o777:o})",
                where=path.parent,
                remedy="chmod 770" if group is not None else "chmod 700",
            )
        if path.is_socket():
            _remove_stale(path)
        listener.bind(str(path))
        path.chmod(0o660 if group is not None else 0o600)
        if group is not None:
            os.chown(path, -1, group)
        listener.listen()
    except OSError as error:
        listener.close()
        raise NemotronError(
            f"cannot listen: {error.strerror or error}",
            where=path,
            remedy="use a path of at most 107 bytes in a folder that exists",
        ) from error
    except NemotronError:
        listener.close()
        raise
    return listener


def _make_folder(folder: Path, group: int | None) -> None:
    folder.mkdir()
    if group is not None:
        os.chown(folder, -1, group)
    folder.chmod(0o770 if group is not None else 0o700)


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise NemotronError("an engine listens here already", where=path, remedy="stop it first")
