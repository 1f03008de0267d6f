"""The TCP connections of a process's network, as the kernel lists them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED = "01"


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
            port, unsent = local.rpartition(":")[2], queues.partition(":")[0]
            if state == ESTABLISHED:
                yield Connection(int(port, 16), int(unsent, 16))
