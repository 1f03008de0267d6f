"""Addresses of servers: Triton's gRPC or HTTP, encrypted or not."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from nemotron_client.exceptions import RequestRefused

_DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 8000}
_SECURE = ("grpcs", "https")


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
    is none of a server.

    >>> parse_url("grpcs://triton.example")
    Address(target='triton.example:8001', is_http=False, is_secure=True)
    >>> parse_url("http://127.0.0.1:8000/").target, parse_url("127.0.0.1:8001").target
    ('127.0.0.1:8000', '127.0.0.1:8001')
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "grpc", url
        if "/" in url or url.startswith(("unix:", "dns:", "ipv4:", "ipv6:")):
            return Address(url)  # a name that gRPC resolves itself
    elif scheme in ("unix", "dns"):
        return Address(url)
    parts = urlsplit(f"//{rest}")
    try:
        port = parts.port or _DEFAULT_PORTS.get(scheme)
    except ValueError:
        port = None
    is_http = scheme in ("http", "https")
    has_more = parts.query or parts.fragment or "@" in parts.netloc
    if port is None or not parts.hostname or has_more or (parts.path.strip("/") and not is_http):
        raise RequestRefused(
            f"{url!r} is no address of a server: use grpc://HOST:8001 or http://HOST:8000 for "
            "Triton, with grpcs or https for TLS"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    target = f"{host}:{port}{parts.path.rstrip('/')}"
    return Address(target, is_http, scheme in _SECURE)
