"""The client for asyncio: the same calls as `Client`, with `await` and `async for`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
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


class AsyncClient:
    """Talks to Triton over gRPC from one event loop.

    Closing an iterator before its end (`aclose`), or cancelling the task that reads it, stops the
    request in the engine too. Leaving a loop with `break` leaves that to the garbage collector:
    use `contextlib.aclosing`.
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
            self._channel = grpc.aio.insecure_channel(url, options=options)
        else:
            self._channel = grpc.aio.secure_channel(url, credentials(tls), options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = metadata(api_key)
        self._closed = False
        self._endings: set[asyncio.Task[None]] = set()
        self._places: contextlib.AbstractAsyncContextManager[object] = (
            contextlib.nullcontext()
            if limits.concurrent_requests is None
            else asyncio.Semaphore(limits.concurrent_requests)
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection; requests that still run end with ConnectionFailed."""
        while self._endings:
            await asyncio.wait(self._endings)
        self._closed = True
        await self._channel.close()

    async def is_ready(self) -> bool:
        """Whether the server answers and the model can be asked."""
        request = service_pb2.ModelReadyRequest(name=self.model)
        try:
            answer = await self._stub.ModelReady(
                request, timeout=self.timeouts.connect, metadata=self._metadata
            )
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    async def model_parameters(self, model: str) -> dict[str, str]:
        """What a model's configuration says beyond Triton's own keys. Raises ClientError."""
        request = service_pb2.ModelConfigRequest(name=model)
        try:
            answer = await self._stub.ModelConfig(
                request, timeout=self.timeouts.connect, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.url) from error
        return {name: one.string_value for name, one in answer.config.parameters.items()}

    async def chat(self, messages: Messages, generation: Generation = Generation()) -> Piece:
        """The answer to a conversation, whole. Raises ClientError."""
        return await self._whole(messages, generation)

    def stream_chat(
        self, messages: Messages, generation: Generation = Generation()
    ) -> AsyncGenerator[Piece, None]:
        """The answer to a conversation as it is written. Raises ClientError."""
        return self.generate(messages, generation, stream=True)

    async def complete(
        self, prompt: str | Sequence[int], generation: Generation = Generation()
    ) -> Piece:
        """What the model writes after a raw prompt, whole. Raises ClientError."""
        return await self._whole(prompt, generation)

    def stream_complete(
        self, prompt: str | Sequence[int], generation: Generation = Generation()
    ) -> AsyncGenerator[Piece, None]:
        """What the model writes after a raw prompt, as it is written. Raises ClientError."""
        return self.generate(prompt, generation, stream=True)

    async def generate(
        self, prompt: Prompt, generation: Generation = Generation(), *, stream: bool = False
    ) -> AsyncGenerator[Piece, None]:
        """Every answer to a prompt: one piece for each, or with `stream` all pieces as they come.

        Of `num_return_sequences` answers each piece names its own. Raises ClientError.
        """
        for attempt in itertools.count(1):
            exchange = Exchange(self.url, self.model, prompt, generation, stream=stream)
            try:
                async with self._places, contextlib.aclosing(self._exchange(exchange)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except ClientError as error:
                delay = self.retries.delay(attempt, error, begun=exchange.begun)
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def _whole(self, prompt: Prompt, generation: Generation) -> Piece:
        only_one(generation)
        (piece,) = [piece async for piece in self.generate(prompt, generation)]
        return piece

    async def _exchange(self, exchange: Exchange) -> AsyncGenerator[Piece, None]:
        call = self._stub.ModelStreamInfer(
            iter([exchange.request]), timeout=self.timeouts.total, metadata=self._metadata
        )
        patience = Patience(self.timeouts)
        alarm = _Alarm(call, patience)
        try:
            patience.begin()
            alarm.set()
            async for response in call:
                patience.rest()
                yield exchange.take(response)
                patience.begin()
                alarm.set()
            exchange.end()
        except grpc.RpcError as error:
            raise exchange.failure(error, patience.late) from error
        except asyncio.CancelledError:
            # So gRPC calls it too when the alarm or `aclose` cancelled the call, not our task.
            if patience.late or self._closed:
                raise exchange.cancelled(patience.late) from None
            raise
        finally:
            alarm.off()
            # In a task of its own: this one may have been cancelled itself.
            if not exchange.is_over:
                self._finish(self._stop(call, exchange.request_id))
            elif not call.done():
                self._finish(_read_out(call))

    def _finish(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(ending)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _stop(self, call: Any, request_id: str) -> None:
        """Free the engine now; the ensemble notices that its client has gone a token later."""
        call.cancel()
        requests = iter([stop_request(ENGINE_MODEL, request_id)])
        await _read_out(
            self._stub.ModelStreamInfer(requests, timeout=STOP_TIMEOUT, metadata=self._metadata)
        )


async def _read_out(call: Any) -> None:
    """To the end: a cancel now could meet Triton's own, which then loses the request."""
    with suppress(grpc.RpcError, asyncio.CancelledError):
        async for _response in call:
            pass


class _Alarm:
    """Cancels a call whose next piece is overdue; gRPC itself has only `total`.

    One timer for a stream, not one for each piece: it looks when it rings whether it still matters.
    """

    def __init__(self, call: Any, patience: Patience) -> None:
        self._call = call
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """A piece is awaited, as long as the patience says."""
        if self._timer is None and self._patience.due < math.inf:
            self._timer = self._loop.call_later(self._patience.due - time.monotonic(), self._ring)

    def off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self._timer = None
        if self._patience.is_over(time.monotonic()):
            self._call.cancel()
        else:
            self.set()
