"""A client for Nemotron-4 on Triton: send a prompt, read the answer while it is generated.

>>> from nemotron_client import Client
>>> with Client("127.0.0.1:8001") as client:  # doctest: +SKIP
...     for piece in client.stream_chat([{"role": "user", "content": "Hello!"}]):
...         print(piece.text, end="", flush=True)
"""

from __future__ import annotations

from nemotron_client.async_client import AsyncClient
from nemotron_client.client import Client
from nemotron_client.exceptions import (
    ClientError,
    ConnectionFailed,
    RequestRefused,
    RequestTimeout,
    ServerFailed,
    ServerOverloaded,
)
from nemotron_client.settings import Limits, RequestOptions, Retries, Timeouts, Tls
from nemotron_core.generation import Generation, Piece, Times

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "Generation",
    "Limits",
    "Piece",
    "RequestOptions",
    "RequestRefused",
    "RequestTimeout",
    "Retries",
    "ServerFailed",
    "ServerOverloaded",
    "Timeouts",
    "Times",
    "Tls",
]
