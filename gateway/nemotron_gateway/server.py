"""The gateway as a process, which listens, writes its port file, and drains after a signal."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

import uvicorn
import uvloop

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_gateway.app import Gateway
from nemotron_gateway.connection_limits import bounded_protocol
from nemotron_gateway.keys import KEYS_VARIABLE, Keys
from nemotron_gateway.settings import LOOPBACK, GatewaySettings

POLL_SECONDS = 0.02
REFUSE_SECONDS = 0.2
"""Time in which new requests are still refused in words when no others run."""
FLUSH_SECONDS = 1
"""Time for the last bytes of answers, once all have ended or their time is over."""


def serve(settings: GatewaySettings, keys: Keys, port_file: Path | None = None) -> None:
    """Run the gateway until SIGINT or SIGTERM.

    After the first signal running requests finish, and new ones are answered with status 503. A
    second SIGINT ends the process at once. `port_file` receives JSON once the gateway listens: its
    port, its process id, the model's name, and whether requests need a key. Raises `NemotronError`
    if the port cannot be used.
    """
    logging.basicConfig(level=logging.WARNING, format="nemotron gateway: %(message)s")
    if not keys.are_required and settings.address not in LOOPBACK:
        logging.getLogger(__name__).warning(
            "everybody who reaches %s may send requests: set %s", settings.address, KEYS_VARIABLE
        )
    with _listen(settings) as listener:
        uvloop.run(_serve(settings, keys, listener, port_file))


async def _serve(
    settings: GatewaySettings,
    keys: Keys,
    listener: socket.socket,
    port_file: Path | None,
) -> None:
    gateway = Gateway(settings, keys)
    await gateway.open()
    server = _Server(gateway, settings)
    serving = asyncio.create_task(server.serve([listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(POLL_SECONDS)
    port = listener.getsockname()[1]
    try:
        if port_file is not None and not serving.done():
            _write_port_file(port_file, port, settings.model, keys)
        if not serving.done():
            print(f"gateway: http://{settings.address}:{port}", file=sys.stderr, flush=True)
        await serving
    finally:
        if port_file is not None:
            port_file.unlink(missing_ok=True)
        await gateway.close()


class _Server(uvicorn.Server):
    def __init__(self, gateway: Gateway, settings: GatewaySettings) -> None:
        self._gateway = gateway
        self._drain_seconds = settings.timeouts.drain
        self._draining: asyncio.Task[None] | None = None
        self._interrupts = 0
        super().__init__(
            uvicorn.Config(
                gateway,
                http=bounded_protocol(settings),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=round(settings.timeouts.keep_alive),
                timeout_graceful_shutdown=FLUSH_SECONDS,
            )
        )

    def handle_exit(self, number: int, _frame: FrameType | None) -> None:
        """Drain after the first signal, and end at once after a second Ctrl-C.

        A signal to every process of a server comes here twice, once by way of `nemotron serve` as
        SIGTERM, in any order. Unlike uvicorn's own method, this does not raise the signal again at
        the end, because a drained gateway has exit code 0.
        """
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            self.should_exit = self.force_exit = True
        self._gateway.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Begin to drain after a signal. Return whether the server ends."""
        if self._gateway.draining and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        """Wait until all requests have ended. Meanwhile connections are accepted, to refuse."""
        deadline = time.monotonic() + self._drain_seconds
        self._gateway.drain()
        await asyncio.sleep(REFUSE_SECONDS)
        while self._gateway.running and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        self.should_exit = True


def _listen(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.address, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise NemotronError(
            f"the port {settings.port} cannot be used: {error.strerror}",
            where=f"{settings.address}:{settings.port}",
            remedy="stop what listens there or choose another with --port",
        ) from error
    return listener


def _write_port_file(path: Path, port: int, model: str, keys: Keys) -> None:
    content = {
        "pid": os.getpid(),
        "gateway": port,
        "model": model,
        "needs_key": keys.are_required,
    }
    write_atomically(path, json.dumps(content) + "\n")
