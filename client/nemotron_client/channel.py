"""The connection of a client to a server, and gRPC's channel with its options and metadata."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from nemotron_client.address import Address
from nemotron_client.exceptions import RequestRefused
from nemotron_client.settings import Limits, Timeouts, Tls

RECONNECT_MS = 200
LONGEST_RECONNECT_MS = 5000
LONGEST_MS = 2**31 - 1
"""Longest time that an option of gRPC can be."""
_HEADER_NAME = re.compile(r"[a-z0-9_.-]+")


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
    """Headers of every request, as `checked_headers` returns them."""

    def check_size(self, what: str, size: int) -> None:
        """Raise `RequestRefused` if a request or a response of `size` bytes is too large."""
        largest = self.limits.message_bytes
        if size > largest:
            raise RequestRefused(
                f"a {what} of {size} bytes or more: Limits(message_bytes={largest}) allows no more"
            )

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
        ("grpc.min_reconnect_backoff_ms", _milliseconds(timeouts.connect)),
        ("grpc.max_reconnect_backoff_ms", LONGEST_RECONNECT_MS),
        ("grpc.keepalive_time_ms", _milliseconds(timeouts.keepalive)),
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


def checked_headers(*parts: Mapping[str, str]) -> dict[str, str]:
    """Return headers by their names in lower case; of equal ones, the last.

    Raises `RequestRefused` if a header is none that both gRPC and HTTP can send.
    """
    headers = {name.lower(): value for part in parts for name, value in part.items()}
    for name, value in headers.items():
        is_text = isinstance(value, str) and value.isascii() and value.isprintable()
        if not is_text or not _HEADER_NAME.fullmatch(name):  # the value may be a secret
            raise RequestRefused(
                f"header {name!r}: its name must be of letters, digits, '-', '_' and '.', and its "
                "value one line of ASCII (a key from a file may end with a newline)"
            )
    return headers


def _milliseconds(seconds: float) -> int:
    return round(min(max(1, seconds * 1000), LONGEST_MS))


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
