"""Triton's gRPC for the blocking client."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import grpc

from nemotron_client.channel import Connection
from nemotron_client.exceptions import ClientError
from nemotron_client.exchange import Exchange, PieceTimeout
from nemotron_client.grpc_calls import GrpcCalls, read_parameters, read_response
from nemotron_core.generation import Piece

WATCH_SECONDS = 0.05
"""Seconds between two checks for overdue pieces."""


class GrpcWire:
    """A connection to Triton's gRPC; may be used by several threads."""

    def __init__(self, connection: Connection) -> None:
        self._timeouts = connection.timeouts
        self._calls = GrpcCalls(grpc, connection)
        self._watchdog = _Watchdog()

    def close(self) -> None:
        """Close the connection, which ends all its requests."""
        self._watchdog.close()
        self._calls.channel.close()

    def is_ready(self, model: str) -> bool:
        """Return whether the server answers and the model accepts requests."""
        try:
            return bool(self._calls.model_ready(model).ready)
        except (grpc.RpcError, ClientError):
            return False

    def parameters(self, model: str) -> dict[str, str]:
        """Return the `parameters` of a model's configuration. Raises `ClientError`."""
        try:
            return read_parameters(self._calls.model_config(model))
        except grpc.RpcError as error:
            raise self._calls.error(error) from error

    def pieces(self, exchange: Exchange) -> Generator[Piece, None, None]:
        """Yield the pieces of an answer. Closing the generator early stops the request."""
        call = self._calls.generate(exchange)
        timeout = PieceTimeout(self._timeouts)
        try:
            with self._watchdog.watching(call, timeout):
                timeout.start(time.monotonic())
                for response in call:
                    timeout.stop()
                    yield from read_response(response, exchange)
                    timeout.start(time.monotonic())
            exchange.end()
        except grpc.RpcError as error:
            raise self._calls.failure(error, exchange, timeout.message) from error
        finally:
            if exchange.is_over:
                # Read to the end: to cancel the call now could meet Triton's own end of it, and
                # Triton then loses the request.
                with suppress(grpc.RpcError):
                    _drain(call)
            else:
                call.cancel()
                # The server may have ended too, or this client may be closed.
                with suppress(grpc.RpcError, ClientError):
                    _drain(self._calls.stop(exchange))


def _drain(call: Any) -> None:
    for _response in call:
        pass


class _Watchdog:
    """Cancels calls whose next piece is overdue. One thread serves all calls of a client.

    gRPC itself has only a timeout for a whole call.
    """

    def __init__(self) -> None:
        self._calls: dict[grpc.Call, PieceTimeout] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watching(self, call: grpc.Call, timeout: PieceTimeout) -> Generator[None, None, None]:
        if timeout.is_endless:
            yield
            return
        with self._lock:
            self._calls[call] = timeout
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="timeouts", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                del self._calls[call]

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_SECONDS):
            now = time.monotonic()
            with self._lock:
                overdue = [call for call, timeout in self._calls.items() if timeout.is_over(now)]
            for call in overdue:
                call.cancel()
