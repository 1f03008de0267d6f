"""The end of an engine's first machine, as the other machines notice it.

A library's worker that waits for the first machine's next message may wait for ever, with all its
memory, when that machine's processes have died.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable

KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Options in seconds and tries: a machine without power closes no connection."""


def end_with(host: str, port: int, shut_down: Callable[[], object]) -> None:
    """Let this process end when the process that listens at `port` of the first machine has ended.

    That is the worker with PyTorch's store, through which the ranks have met; the connection stays
    silent. `shut_down` ends what this process has started. The exit code is 0, whatever ended the
    first machine's process: its own code says so. Raises `OSError` if nobody listens.
    """
    connection = socket.create_connection((host, port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    threading.Thread(target=_wait, args=(connection, shut_down), daemon=True).start()


def _wait(connection: socket.socket, shut_down: Callable[[], object]) -> None:
    try:
        while connection.recv(1):
            """Nothing is ever said here."""
    except OSError:
        """The machine is gone."""
    print("nemotron_engine: the engine's first machine has ended", file=sys.stderr, flush=True)
    try:
        shut_down()
    finally:
        os._exit(0)
