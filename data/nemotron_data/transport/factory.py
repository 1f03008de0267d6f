"""The choice of a transport by the scheme of a server's URL."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from nemotron_core.errors import NemotronError
from nemotron_data.transport.protocol import Transport


def open_transport(url: str, *, timeout: float, connections: int, key_variable: str) -> Transport:
    """Return a transport to an OpenAI-compatible server (`http(s)://`) or Triton (`grpc(s)://`).

    `timeout` is in seconds for one request, `connections` the largest number of connections over
    HTTP. The API key is the value of the environment variable `key_variable`, if it is set. Raises
    `NemotronError` for any other URL.
    """
    api_key = os.environ.get(key_variable) or None
    parts = urlsplit(url)
    try:
        needs_port = "http" not in parts.scheme
        scheme = parts.scheme if parts.hostname and (parts.port or not needs_port) else ""
    except ValueError:  # the port is not a number
        scheme = ""
    # Each transport needs a library of its own, so it is imported only where it is used.
    if scheme in ("grpc", "grpcs"):
        from nemotron_data.transport.triton import TritonTransport  # noqa: PLC0415

        secure = scheme == "grpcs"
        return TritonTransport(parts.netloc, secure=secure, api_key=api_key, timeout=timeout)
    if scheme in ("http", "https"):
        from nemotron_data.transport.openai import OpenAITransport  # noqa: PLC0415

        return OpenAITransport(
            url, api_key, key_variable=key_variable, timeout=timeout, connections=connections
        )
    raise NemotronError(
        "not the URL of a server",
        where=url,
        remedy="give http://HOST:1424 of the gateway or grpc://HOST:8001 of Triton",
    )
