"""The settings and the connection that both clients have."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from tritonclient.grpc import service_pb2, service_pb2_grpc

from nemotron_client.channel import metadata, open_channel
from nemotron_client.request import stop_request
from nemotron_client.settings import Limits, Retries, Timeouts, Tls

TEXT_MODEL = "ensemble"
"""Triton model that a client sends its requests to, unless it is given another."""
ENGINE_MODEL = "tensorrt_llm"
"""Triton model that stops running requests."""
STOP_TIMEOUT = 5.0
"""Seconds that a request to stop another request may take."""


class BaseClient:
    """Base of `Client` and `AsyncClient`, which add the calls."""

    _grpc: ClassVar[Any]
    """The module that opens channels: `grpc` or `grpc.aio`."""
    _semaphore: ClassVar[Any]
    """The type of the semaphore that limits concurrent requests."""

    def __init__(
        self,
        url: str,
        *,
        model: str = TEXT_MODEL,
        timeouts: Timeouts = Timeouts(),
        limits: Limits = Limits(),
        retries: Retries = Retries(),
        tls: Tls | None = None,
        api_key: str | None = None,
    ) -> None:
        self.url = url
        self.model = model
        self.timeouts = timeouts
        self.retries = retries
        self._channel = open_channel(self._grpc, url, timeouts, limits, tls)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = metadata(api_key)
        self._limit: Any = contextlib.nullcontext()
        if limits.concurrent_requests is not None:
            self._limit = self._semaphore(limits.concurrent_requests)
        self._prepare()

    def _prepare(self) -> None:
        """Create the state that only one of the clients has."""

    def _call(self, method: str, request: Any) -> Any:
        """Start a call that has one response."""
        return getattr(self._stub, method)(
            request, timeout=self.timeouts.connect, metadata=self._metadata
        )

    def _stream(self, request: service_pb2.ModelInferRequest, timeout: float | None) -> Any:
        """Start a call that streams the responses to a request."""
        return self._stub.ModelStreamInfer(
            iter([request]), timeout=timeout, metadata=self._metadata
        )

    def _stop_stream(self, request_id: str) -> Any:
        """Start a call that stops a running request in the engine at once.

        The ensemble alone would notice the cancelled call one token later.
        """
        return self._stream(stop_request(ENGINE_MODEL, request_id), STOP_TIMEOUT)
