"""The gRPC channel of a client: its options, credentials and metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from nemotron_client.settings import Limits, Timeouts, Tls

RECONNECT_MS = 200
LONGEST_RECONNECT_MS = 5000
KEEPALIVE_MS = 60_000
"""Milliseconds between keepalive pings, which detect a server whose machine vanished while a
client waits for an answer."""


def open_channel(
    library: Any, url: str, timeouts: Timeouts, limits: Limits, tls: Tls | None
) -> Any:
    """Return a channel of `library`, which is `grpc` or `grpc.aio`.

    Raises `OSError` if a file of `tls` cannot be read.
    """
    options = [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        # gRPC uses the minimum time between two attempts also as the time limit of an attempt.
        ("grpc.min_reconnect_backoff_ms", max(1, round(timeouts.connect * 1000))),
        ("grpc.max_reconnect_backoff_ms", LONGEST_RECONNECT_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        # Otherwise two clients in a process use the same connection, and the same backoff.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if tls is None:
        return library.insecure_channel(url, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca),
        private_key=_read(tls.key),
        certificate_chain=_read(tls.certificate),
    )
    return library.secure_channel(url, credentials, options=options)


def metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata that is sent with every call."""
    return () if api_key is None else (("authorization", f"Bearer {api_key}"),)


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
