"""The connection of a client to a server, and gRPC's channel with its options and metadata."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from nemotron_client.address import Address
from nemotron_client.settings import Limits, Timeouts, Tls

RECONNECT_MS = 200
LONGEST_RECONNECT_MS = 5000


@dataclass(frozen=True)
class Connection:
    """What both wires need to reach a server."""

    url: str
    """As the user wrote it, for messages."""
    address: Address
    timeouts: Timeouts
    limits: Limits
    tls: Tls
    headers: Mapping[str, str]
    """Headers of every request."""

    def ssl_context(self) -> ssl.SSLContext:
        """Return the context of an HTTPS client. Raises `OSError` if a file cannot be read."""
        context = ssl.create_default_context(cafile=self.tls.ca)
        if self.tls.certificate is not None:
            context.load_cert_chain(self.tls.certificate, self.tls.key)
        return context


def open_channel(library: Any, connection: Connection) -> Any:
    """Return a channel of `library`, which is `grpc` or `grpc.aio`.

    Raises `OSError` if a file of `tls` cannot be read.
    """
    timeouts, limits, tls = connection.timeouts, connection.limits, connection.tls
    options = [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        # gRPC uses the minimum time between two attempts also as the time limit of an attempt.
        ("grpc.min_reconnect_backoff_ms", max(1, round(timeouts.connect * 1000))),
        ("grpc.max_reconnect_backoff_ms", LONGEST_RECONNECT_MS),
        ("grpc.keepalive_time_ms", max(1, round(timeouts.keepalive * 1000))),
        # Otherwise gRPC stops after two pings without data, and a server's end stays unnoticed.
        ("grpc.http2.max_pings_without_data", 0),
        # Otherwise two clients in a process use the same connection, and the same backoff.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if not connection.address.is_secure:
        return library.insecure_channel(connection.address.target, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca),
        private_key=_read(tls.key),
        certificate_chain=_read(tls.certificate),
    )
    return library.secure_channel(connection.address.target, credentials, options=options)


def metadata(*headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return headers as gRPC's metadata, whose keys are in lower case."""
    return tuple((name.lower(), value) for part in headers for name, value in part.items())


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
