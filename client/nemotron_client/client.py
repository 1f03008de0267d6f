"""The client that waits: one call, or a loop over the pieces of an answer."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import suppress

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nemotron_client.channel import channel_options, credentials, metadata
from nemotron_client.exceptions import ClientError, from_rpc_error
from nemotron_client.exchange import (
    ENGINE_MODEL,
    MODEL,
    STOP_TIMEOUT,
    Exchange,
    Messages,
    Patience,
    only_one,
)
from nemotron_client.request import stop_request
from nemotron_client.settings import Limits, Retries, Timeouts, Tls
from nemotron_core.generation import Generation, Piece, Prompt

LOOK_SECONDS = 0.05


class Client:
    """Talks to Triton over gRPC; may be shared between threads.

    Closing an iterator before its end, or leaving its loop by an exception, stops the request in
    the engine too. `AsyncClient` is the same with `await`.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = MODEL,
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
        options = channel_options(timeouts, limits)
        if tls is None:
            self._channel = grpc.insecure_channel(url, options=options)
        else:
            self._channel = grpc.secure_channel(url, credentials(tls), options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = metadata(api_key)
        self._watchdog = _Watchdog()
        self._places: contextlib.AbstractContextManager[object] = (
            contextlib.nullcontext()
            if limits.concurrent_requests is None
            else threading.BoundedSemaphore(limits.concurrent_requests)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; requests that still run end with ConnectionFailed."""
        self._watchdog.close()
        self._channel.close()

    def is_ready(self) -> bool:
        """Whether the server answers and the model can be asked."""
        request = service_pb2.ModelReadyRequest(name=self.model)
        try:
            answer = self._stub.ModelReady(
                request, timeout=self.timeouts.connect, metadata=self._metadata
            )
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    def model_parameters(self, model: str) -> dict[str, str]:
        """What a model's configuration says beyond Triton's own keys. Raises ClientError."""
        request = service_pb2.ModelConfigRequest(name=model)
        try:
            answer = self._stub.ModelConfig(
                request, timeout=self.timeouts.connect, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.url) from error
        return {name: one.string_value for name, one in answer.config.parameters.items()}

    def chat(self, messages: Messages, generation: Generation = Generation()) -> Piece:
        """The answer to a conversation, whole. Raises ClientError."""
        return self._whole(messages, generation)

    def stream_chat(
        self, messages: Messages, generation: Generation = Generation()
    ) -> Generator[Piece, None, None]:
        """The answer to a conversation as it is written. Raises ClientError."""
        return self.generate(messages, generation, stream=True)

    def complete(self, prompt: str | Sequence[int], generation: Generation = Generation()) -> Piece:
        """What the model writes after a raw prompt, whole. Raises ClientError."""
        return self._whole(prompt, generation)

    def stream_complete(
        self, prompt: str | Sequence[int], generation: Generation = Generation()
    ) -> Generator[Piece, None, None]:
        """What the model writes after a raw prompt, as it is written. Raises ClientError."""
        return self.generate(prompt, generation, stream=True)

    def generate(
        self, prompt: Prompt, generation: Generation = Generation(), *, stream: bool = False
    ) -> Generator[Piece, None, None]:
        """Every answer to a prompt: one piece for each, or with `stream` all pieces as they come.

        Of `num_return_sequences` answers each piece names its own. Raises ClientError.
        """
        for attempt in itertools.count(1):
            exchange = Exchange(self.url, self.model, prompt, generation, stream=stream)
            try:
                with self._places:
                    yield from self._exchange(exchange)
                return
            except ClientError as error:
                delay = self.retries.delay(attempt, error, begun=exchange.begun)
                if delay is None:
                    raise
            time.sleep(delay)

    def _whole(self, prompt: Prompt, generation: Generation) -> Piece:
        only_one(generation)
        (piece,) = self.generate(prompt, generation)
        return piece

    def _exchange(self, exchange: Exchange) -> Generator[Piece, None, None]:
        call = self._stub.ModelStreamInfer(
            iter([exchange.request]), timeout=self.timeouts.total, metadata=self._metadata
        )
        patience = Patience(self.timeouts)
        try:
            with self._watchdog.watching(call, patience):
                patience.begin()
                for response in call:
                    patience.rest()
                    yield exchange.take(response)
                    patience.begin()
            exchange.end()
        except grpc.RpcError as error:
            raise exchange.failure(error, patience.late) from error
        finally:
            if exchange.is_over:
                # To the end: a cancel now could meet Triton's own, which then loses the request.
                with suppress(grpc.RpcError):
                    for _response in call:
                        pass
            else:
                call.cancel()
                self._stop(exchange.request_id)

    def _stop(self, request_id: str) -> None:
        """Free the engine now; the ensemble notices that its client has gone a token later."""
        requests = iter([stop_request(ENGINE_MODEL, request_id)])
        # The server may be gone with the request, or this client closed (a ValueError).
        with suppress(grpc.RpcError, ValueError):
            for _response in self._stub.ModelStreamInfer(
                requests, timeout=STOP_TIMEOUT, metadata=self._metadata
            ):
                pass


class _Watchdog:
    """Cancels calls whose next piece is overdue, from one thread for all; gRPC has only `total`."""

    def __init__(self) -> None:
        self._calls: dict[grpc.Call, Patience] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watching(self, call: grpc.Call, patience: Patience) -> Generator[None, None, None]:
        if patience.is_endless:
            yield
            return
        with self._lock:
            self._calls[call] = patience
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
        while not self._closed.wait(LOOK_SECONDS):
            now = time.monotonic()
            with self._lock:
                overdue = [call for call, one in self._calls.items() if one.is_over(now)]
            for call in overdue:
                call.cancel()
