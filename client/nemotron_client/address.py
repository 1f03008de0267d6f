"""Addresses of servers: Triton's gRPC or HTTP, encrypted or not."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from nemotron_client.exceptions import RequestRefused

_DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 8000}
_SECURE = ("grpcs", "https")
_GRPC_NAMES = ("unix:", "dns:", "ipv4:", "ipv6:")
"""Beginnings of the names that gRPC resolves itself."""


@dataclass(frozen=True)
class Address:
    """The parts of a server's URL."""

    target: str
    """`host:port`. For HTTP, a proxy's path may follow; for gRPC, it may be one of gRPC's names."""
    is_http: bool = False
    is_secure: bool = False


def parse_url(url: str) -> Address:
    """Return the parts of a URL. Without a scheme, it is the address of Triton's gRPC.

    Without a port, it is Triton's: 8001 for gRPC, 8000 for HTTP. Raises `RequestRefused` if the URL
    is none of a server, or names a user.

    >>> parse_url("grpcs://triton.example")
    Address(target='triton.example:8001', is_http=False, is_secure=True)
    >>> parse_url("http://127.0.0.1:8000/").target, parse_url("127.0.0.1:8001").target
    ('127.0.0.1:8000', '127.0.0.1:8001')
    """
    if url.startswith(_GRPC_NAMES):
        return Address(url)
    scheme, separator, rest = url.partition("://")
    scheme, rest = (scheme.lower(), rest) if separator else ("grpc", url)
    if "@" in rest:  # not shown, because it may be a password
        raise RequestRefused(
            "the address of a server has a user or a password: leave it out and use api_key or "
            "headers"
        )
    refusal = RequestRefused(
        f"{url!r} is no address of a server: use grpc://HOST:8001 or http://HOST:8000 for "
        "Triton, with grpcs or https for TLS"
    )
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port or _DEFAULT_PORTS[scheme]
    except (ValueError, KeyError):
        raise refusal from None
    is_http = scheme in ("http", "https")
    has_more = parts.query or parts.fragment or (parts.path.strip("/") and not is_http)
    if scheme not in _DEFAULT_PORTS or not parts.hostname or has_more:
        raise refusal
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    target = f"{host}:{port}{parts.path.rstrip('/')}"
    return Address(target, is_http, scheme in _SECURE)
