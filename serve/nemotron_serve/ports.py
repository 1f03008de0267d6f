"""The ports of a server: chosen from its profile, and who is in the way if one is in use."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psutil

from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError

MAX_PORT = 65535


@dataclass(frozen=True)
class Endpoints:
    """The address and the ports on which a server listens."""

    address: str
    http: int
    grpc: int
    metrics: int
    health: int
    gateway: int | None
    """Port of the HTTP gateway. `None` means that there is no gateway."""

    @property
    def host(self) -> str:
        """The address as it stands before a port."""
        return f"[{self.address}]" if ":" in self.address else self.address


def choose_ports(profile: Profile, *, take_free: bool = False) -> Endpoints:
    """Return the profile's ports, with a free port in place of each 0.

    With `take_free`, the next free port is taken in place of one that is in use. Otherwise, raises
    `NemotronError` for such a port, with the process that has it and the next free one.
    """
    chosen: dict[str, Any] = {"gateway": None}
    address = profile.address
    with ExitStack() as stack:
        for name, port in profile.ports.model_dump(exclude_none=True).items():
            listener = stack.enter_context(socket.socket(_family(address)))
            try:
                _listen(listener, address, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise NemotronError(
                        f"the {name} port {port} cannot be used: {error.strerror}",
                        where=f"{address}:{port}",
                        remedy=f"choose another with --{name}-port",
                    ) from error
                taken = {*chosen.values(), *profile.ports.model_dump().values()}
                free = next_free_port(address, port, taken)
                if free is None or not take_free:
                    raise _in_use(name, address, port, free) from error
                listener = stack.enter_context(socket.socket(_family(address)))
                _listen(listener, address, free)
            chosen[name] = listener.getsockname()[1]
    return Endpoints(address, **chosen)


def next_free_port(address: str, port: int, taken: set[int | None]) -> int | None:
    """Return the first port after `port` that is free and not in `taken`, or `None`."""
    for candidate in range(port + 1, MAX_PORT + 1):
        if candidate in taken:
            continue
        with socket.socket(_family(address)) as listener:
            try:
                _listen(listener, address, candidate)
            except OSError:
                continue
            return candidate
    return None


def listening_process(port: int) -> str | None:
    """Return the process that listens on a TCP port, or `None` if the system does not say.

    The system tells a user only of processes of the same user.
    """
    try:
        connections = psutil.net_connections("tcp")
        process = next(
            psutil.Process(connection.pid)
            for connection in connections
            if connection.status == psutil.CONN_LISTEN
            and connection.laddr[1:] == (port,)
            and connection.pid
        )
        return f"{process.name()}, process {process.pid}"
    except (psutil.Error, StopIteration, OSError):
        return None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _listen(listener: socket.socket, address: str, port: int) -> None:
    """Bind a socket. Raises `OSError` if the port cannot be used."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen()  # otherwise two sockets could get the same port


def _in_use(name: str, address: str, port: int, free: int | None) -> NemotronError:
    process = listening_process(port)
    other = f"--{name}-port {free}" if free is not None else f"another --{name}-port"
    return NemotronError(
        f"the {name} port {port} cannot be used: "
        + (f"{process} listens there" if process else "Address already in use"),
        where=f"{address}:{port}",
        remedy=f"stop what listens there, or serve with {other},"
        " or with --free-ports in place of all that are in use",
    )
