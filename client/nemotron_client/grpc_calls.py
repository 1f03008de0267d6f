"""The calls of Triton's gRPC service that the clients make, blocking or asynchronous."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nemotron_client.channel import Connection, checked_headers, open_channel
from nemotron_client.exceptions import (
    ClientError,
    ConnectionFailed,
    RequestRefused,
    ServerFailed,
    from_rpc_error,
)
from nemotron_client.exchange import CLOSED, Exchange
from nemotron_client.request import generation_request, stop_request
from nemotron_client.response import read_outputs
from nemotron_core.generation import Piece

ENGINE_MODEL = "tensorrt_llm"
"""Triton model that stops running requests."""
STOP_TIMEOUT = 5.0
"""Seconds that a request to stop another request may take."""


class GrpcCalls:
    """Starts calls on a channel of `library`, which is `grpc` or `grpc.aio`.

    Each raises `ConnectionFailed` if the channel is closed.
    """

    def __init__(self, library: Any, connection: Connection) -> None:
        self._connection = connection
        self.channel = open_channel(library, connection)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def model_ready(self, model: str) -> Any:
        """Start to ask whether a model is ready."""
        request = service_pb2.ModelReadyRequest(name=model)
        return self._call("ModelReady", request, self._connection.timeouts.connect)

    def model_config(self, model: str) -> Any:
        """Start to ask for a model's configuration."""
        request = service_pb2.ModelConfigRequest(name=model)
        return self._call("ModelConfig", request, self._connection.timeouts.connect)

    def generate(self, exchange: Exchange) -> Any:
        """Start the stream of responses to a request.

        Raises `RequestRefused` if the request or one of its headers does not fit on the wire.
        """
        try:
            request = generation_request(
                exchange.model,
                exchange.request_id,
                exchange.prompt,
                exchange.generation,
                exchange.options,
                stream=exchange.stream,
            )
        except ValueError as error:
            raise RequestRefused(str(error)) from error
        # gRPC's own check leaves an asynchronous call with an error that names no reason.
        self._connection.check_size("request", request.ByteSize())
        return self._stream(request, self._connection.timeouts.total, exchange)

    def stop(self, exchange: Exchange) -> Any:
        """Start the stream that stops a running request in the engine at once.

        The ensemble alone would notice the cancelled call one token later.
        """
        return self._stream(stop_request(ENGINE_MODEL, exchange.request_id), STOP_TIMEOUT, exchange)

    def _stream(
        self, request: service_pb2.ModelInferRequest, timeout: float | None, exchange: Exchange
    ) -> Any:
        return self._call("ModelStreamInfer", iter([request]), timeout, exchange.options.headers)

    def _call(
        self, method: str, request: Any, timeout: float | None, headers: Mapping[str, str] = {}
    ) -> Any:
        metadata = tuple(checked_headers(self._connection.headers, headers).items())
        try:
            return getattr(self._stub, method)(request, timeout=timeout, metadata=metadata)
        except (ValueError, grpc.aio.UsageError) as error:
            raise ConnectionFailed(CLOSED) from error

    def error(self, error: grpc.RpcError) -> ClientError:
        """Return the exception for a failed call."""
        return from_rpc_error(error, self._connection.url)

    def failure(
        self, error: grpc.RpcError, exchange: Exchange, timeout_message: str
    ) -> ClientError:
        """Return the exception for a failed stream.

        `timeout_message` is not empty if this client cancelled the call because of a timeout.
        """
        if timeout_message or error.code() is grpc.StatusCode.CANCELLED:
            return exchange.cancelled(timeout_message)
        return exchange.failure(self.error(error))


def read_response(
    response: service_pb2.ModelStreamInferResponse, exchange: Exchange
) -> list[Piece]:
    """Return the pieces in a response. Raises the `ClientError` that it has instead of any."""
    if response.error_message:
        raise exchange.error(response.error_message)
    try:
        outputs = read_outputs(response.infer_response)
    except ValueError as error:
        raise ServerFailed(str(error)) from error
    return exchange.read(outputs)


def read_parameters(response: service_pb2.ModelConfigResponse) -> dict[str, str]:
    """Return the `parameters` of a model's configuration."""
    return {name: value.string_value for name, value in response.config.parameters.items()}
