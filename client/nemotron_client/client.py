"""The blocking client: one call, or a loop over the pieces of an answer."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from nemotron_client.base_client import BaseClient
from nemotron_client.exceptions import ClientError, from_rpc_error
from nemotron_client.exchange import Exchange, Messages, PieceTimeout, check_single_answer
from nemotron_core.generation import Generation, Piece, Prompt

WATCH_SECONDS = 0.05
"""Seconds between two checks for overdue pieces."""


class Client(BaseClient):
    """Talks to Triton over gRPC; may be used by several threads.

    Closing an iterator before its end, or leaving its loop by an exception, stops the request in
    the engine too. `AsyncClient` has the same methods with `await`.
    """

    _grpc = grpc
    _semaphore = threading.BoundedSemaphore

    def _prepare(self) -> None:
        self._watchdog = _Watchdog()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Requests that still run end with `ConnectionFailed`."""
        self._watchdog.close()
        self._channel.close()

    def is_ready(self) -> bool:
        """Return whether the server answers and the model accepts requests."""
        try:
            response = self._call("ModelReady", service_pb2.ModelReadyRequest(name=self.model))
        except grpc.RpcError:
            return False
        return bool(response.ready)

    def model_parameters(self, model: str) -> dict[str, str]:
        """Return the `parameters` of a model's configuration. Raises `ClientError`."""
        try:
            response = self._call("ModelConfig", service_pb2.ModelConfigRequest(name=model))
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.url) from error
        parameters = response.config.parameters
        return {name: parameter.string_value for name, parameter in parameters.items()}

    def chat(self, messages: Messages, generation: Generation = Generation()) -> Piece:
        """Return the whole answer to a conversation. Raises `ClientError`."""
        return self._whole(messages, generation)

    def stream_chat(
        self, messages: Messages, generation: Generation = Generation()
    ) -> Generator[Piece, None, None]:
        """Yield the answer to a conversation as it is generated. Raises `ClientError`."""
        return self.generate(messages, generation, stream=True)

    def complete(self, prompt: str | Sequence[int], generation: Generation = Generation()) -> Piece:
        """Return the whole completion of a raw prompt. Raises `ClientError`."""
        return self._whole(prompt, generation)

    def stream_complete(
        self, prompt: str | Sequence[int], generation: Generation = Generation()
    ) -> Generator[Piece, None, None]:
        """Yield the completion of a raw prompt as it is generated. Raises `ClientError`."""
        return self.generate(prompt, generation, stream=True)

    def generate(
        self, prompt: Prompt, generation: Generation = Generation(), *, stream: bool = False
    ) -> Generator[Piece, None, None]:
        """Yield one piece for each answer to a prompt, or with `stream` all pieces as they come.

        With `num_return_sequences`, the `sequence_index` of a piece says which answer it belongs
        to. Raises `ClientError`.
        """
        for attempt in itertools.count(1):
            exchange = Exchange(self.url, self.model, prompt, generation, stream=stream)
            try:
                with self._limit:
                    yield from self._exchange(exchange)
                return
            except ClientError as error:
                delay = self.retries.delay(attempt, error, has_started=exchange.has_started)
                if delay is None:
                    raise
            time.sleep(delay)

    def _whole(self, prompt: Prompt, generation: Generation) -> Piece:
        check_single_answer(generation)
        (piece,) = self.generate(prompt, generation)
        return piece

    def _exchange(self, exchange: Exchange) -> Generator[Piece, None, None]:
        call = self._stream(exchange.request, self.timeouts.total)
        timeout = PieceTimeout(self.timeouts)
        try:
            with self._watchdog.watching(call, timeout):
                timeout.start(time.monotonic())
                for response in call:
                    timeout.stop()
                    yield from exchange.read(response)
                    timeout.start(time.monotonic())
            exchange.end()
        except grpc.RpcError as error:
            raise exchange.failure(error, timeout.message) from error
        finally:
            if exchange.is_over:
                # Read to the end: to cancel the call now could meet Triton's own end of it, and
                # Triton then loses the request.
                with suppress(grpc.RpcError):
                    _drain(call)
            else:
                call.cancel()
                # The server may have ended too, or this client may be closed (a ValueError).
                with suppress(grpc.RpcError, ValueError):
                    _drain(self._stop_stream(exchange.request_id))


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
