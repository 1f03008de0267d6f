"""The settings and the connection that both clients have."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from nemotron_client.address import parse_url
from nemotron_client.channel import Connection, checked_headers
from nemotron_client.exceptions import ClientError, RequestRefused
from nemotron_client.exchange import Exchange
from nemotron_client.settings import Limits, Retries, Timeouts, Tls

TEXT_MODEL = "ensemble"
"""Triton model that a client sends its requests to, unless it is given another."""


class BaseClient:
    """Base of `Client` and `AsyncClient`, which add the calls.

    `url` is the address of Triton's gRPC (`grpc://`, `grpcs://`, or without a scheme) or HTTP
    (`http://`, `https://`); the answers are the same. `timeout` is short for `Timeouts(total=…)`,
    `tls` has the files of an encrypted connection and makes one of an address without a scheme,
    `api_key` is sent as `authorization: Bearer …`, and `headers` go with every request. Raises
    `RequestRefused` if the URL, a header or a limit is none, or if `tls` is given for an address
    without encryption, and `OSError` if a file of `tls` cannot be read.
    """

    _grpc_wire: ClassVar[type[Any]]
    _http_wire: ClassVar[type[Any]]
    _semaphore: ClassVar[type[Any]]
    """The type of the semaphore that limits concurrent requests."""

    def __init__(
        self,
        url: str,
        *,
        model: str = TEXT_MODEL,
        timeout: float | None = None,
        timeouts: Timeouts = Timeouts(),
        limits: Limits = Limits(),
        retries: Retries = Retries(),
        tls: Tls | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        self.model = model
        self.timeouts = timeouts
        if timeout is not None:
            self.timeouts = dataclasses.replace(timeouts, total=timeout)
        self.retries = retries
        address = parse_url(url)
        if tls is not None and "://" not in url:
            address = dataclasses.replace(address, is_secure=True)
        if tls is not None and not address.is_secure:
            raise RequestRefused(f"{url!r} is not encrypted: use grpcs:// or https:// with tls")
        key = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        sent = checked_headers(headers or {}, key)
        connection = Connection(url, address, self.timeouts, limits, tls or Tls(), sent)
        self._limit: Any = contextlib.nullcontext()
        if limits.concurrent_requests is not None:
            if limits.concurrent_requests < 1:
                raise RequestRefused(
                    f"concurrent_requests is {limits.concurrent_requests}: 1 or more, or None"
                )
            self._limit = self._semaphore(limits.concurrent_requests)
        self._wire: Any = (self._http_wire if address.is_http else self._grpc_wire)(connection)

    def _delay(self, attempt: int, error: ClientError, exchange: Exchange) -> float | None:
        """Return the seconds to wait before the next attempt, or `None` without another one.

        Completes the exception of the failed attempt.
        """
        error.request_id = exchange.request_id
        return self.retries.delay(attempt, error, has_started=exchange.has_started)
