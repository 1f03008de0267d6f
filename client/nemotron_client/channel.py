"""What both clients tell gRPC about a connection."""

from __future__ import annotations

from pathlib import Path

import grpc

from nemotron_client.settings import Limits, Timeouts, Tls

RECONNECT_MS = 200
LONGEST_RECONNECT_MS = 5000
KEEPALIVE_MS = 60_000
"""So that a peer that vanished without a word is noticed while an answer is awaited."""


def channel_options(timeouts: Timeouts, limits: Limits) -> list[tuple[str, int]]:
    """GRPC's names for them. Its least time between two attempts is how long one may take."""
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", max(1, round(timeouts.connect * 1000))),
        ("grpc.max_reconnect_backoff_ms", LONGEST_RECONNECT_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        # Two clients in a process share a connection otherwise, and with it its backoff.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Sent with every call."""
    return () if api_key is None else (("authorization", f"Bearer {api_key}"),)


def credentials(tls: Tls) -> grpc.ChannelCredentials:
    """OSError if a file cannot be read."""
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca),
        private_key=_read(tls.key),
        certificate_chain=_read(tls.certificate),
    )


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
