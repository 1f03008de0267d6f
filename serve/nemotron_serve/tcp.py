"""The TCP connections of a process's network, as the kernel lists them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OPEN_STATES = ("01", "08")
"""Established, and closed by the other end only, which may still read."""


@dataclass(frozen=True)
class Connection:
    """An open connection."""

    local_port: int
    unsent: int
    """Number of bytes that the other end has not acknowledged."""


def tcp_connections(process: int) -> Iterator[Connection]:
    """Yield the open connections of the network in which a process is, none if it has ended."""
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{process}/net/{name}").read_text(encoding="ascii").splitlines()
        except OSError:  # it has ended, or there is no IPv6
            continue
        for line in lines[1:]:
            _number, local, _remote, state, queues, *_rest = line.split()
            if state in OPEN_STATES:
                port, unsent = local.rpartition(":")[2], queues.partition(":")[0]
                yield Connection(int(port, 16), int(unsent, 16))
