"""The client for asyncio: the methods of `Client`, with `await` and `async for`."""

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
from tritonclient.grpc import service_pb2

from nemotron_client.base_client import BaseClient
from nemotron_client.exceptions import ClientError, from_rpc_error
from nemotron_client.exchange import Exchange, Messages, PieceTimeout, check_single_answer
from nemotron_core.generation import Generation, Piece, Prompt


class AsyncClient(BaseClient):
    """Talks to Triton over gRPC from one event loop.

    Closing an iterator before its end (`aclose`), or cancelling the task that reads it, stops the
    request in the engine too. If a loop is left with `break`, Python closes the iterator only when
    it is garbage-collected: use `contextlib.aclosing`.
    """

    _grpc = grpc.aio
    _semaphore = asyncio.Semaphore

    def _prepare(self) -> None:
        self._closed = False
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. Requests that still run end with `ConnectionFailed`."""
        while self._background:
            await asyncio.wait(self._background)
        self._closed = True
        await self._channel.close()

    async def is_ready(self) -> bool:
        """Return whether the server answers and the model accepts requests."""
        request = service_pb2.ModelReadyRequest(name=self.model)
        try:
            response = await self._call("ModelReady", request)
        except grpc.RpcError:
            return False
        return bool(response.ready)

    async def model_parameters(self, model: str) -> dict[str, str]:
        """Return the `parameters` of a model's configuration. Raises `ClientError`."""
        try:
            response = await self._call("ModelConfig", service_pb2.ModelConfigRequest(name=model))
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.url) from error
        parameters = response.config.parameters
        return {name: parameter.string_value for name, parameter in parameters.items()}

    async def chat(self, messages: Messages, generation: Generation = Generation()) -> Piece:
        """Return the whole answer to a conversation. Raises `ClientError`."""
        return await self._whole(messages, generation)

    def stream_chat(
        self, messages: Messages, generation: Generation = Generation()
    ) -> AsyncGenerator[Piece, None]:
        """Yield the answer to a conversation as it is generated. Raises `ClientError`."""
        return self.generate(messages, generation, stream=True)

    async def complete(
        self, prompt: str | Sequence[int], generation: Generation = Generation()
    ) -> Piece:
        """Return the whole completion of a raw prompt. Raises `ClientError`."""
        return await self._whole(prompt, generation)

    def stream_complete(
        self, prompt: str | Sequence[int], generation: Generation = Generation()
    ) -> AsyncGenerator[Piece, None]:
        """Yield the completion of a raw prompt as it is generated. Raises `ClientError`."""
        return self.generate(prompt, generation, stream=True)

    async def generate(
        self, prompt: Prompt, generation: Generation = Generation(), *, stream: bool = False
    ) -> AsyncGenerator[Piece, None]:
        """Yield one piece for each answer to a prompt, or with `stream` all pieces as they come.

        With `num_return_sequences`, the `sequence_index` of a piece says which answer it belongs
        to. Raises `ClientError`.
        """
        for attempt in itertools.count(1):
            exchange = Exchange(self.url, self.model, prompt, generation, stream=stream)
            try:
                async with self._limit, contextlib.aclosing(self._exchange(exchange)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except ClientError as error:
                delay = self.retries.delay(attempt, error, has_started=exchange.has_started)
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def _whole(self, prompt: Prompt, generation: Generation) -> Piece:
        check_single_answer(generation)
        (piece,) = [piece async for piece in self.generate(prompt, generation)]
        return piece

    async def _exchange(self, exchange: Exchange) -> AsyncGenerator[Piece, None]:
        call = self._stream(exchange.request, self.timeouts.total)
        timeout = PieceTimeout(self.timeouts)
        timer = _Timer(call, timeout)
        try:
            timeout.start(time.monotonic())
            timer.start()
            async for response in call:
                timeout.stop()
                for piece in exchange.read(response):
                    yield piece
                timeout.start(time.monotonic())
                timer.start()
            exchange.end()
        except grpc.RpcError as error:
            raise exchange.failure(error, timeout.message) from error
        except asyncio.CancelledError:
            # gRPC raises this too when the timer or `aclose` cancelled the call, not our task.
            if timeout.message or self._closed:
                raise exchange.cancelled(timeout.message) from None
            raise
        finally:
            timer.cancel()
            # In a task of its own, because this one may have been cancelled itself.
            if not exchange.is_over:
                self._run_in_background(self._stop(call, exchange.request_id))
            elif not call.done():
                self._run_in_background(_drain(call))

    async def _stop(self, call: Any, request_id: str) -> None:
        call.cancel()
        await _drain(self._stop_stream(request_id))

    def _run_in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _drain(call: Any) -> None:
    """Read a call to its end.

    To cancel it instead could meet Triton's own end of it, and Triton then loses the request.
    """
    with suppress(grpc.RpcError, asyncio.CancelledError):
        async for _response in call:
            pass


class _Timer:
    """Cancels a call whose next piece is overdue. gRPC itself has only a timeout for a whole call.

    A stream has one timer at a time, not one for each piece: when the timer fires, it checks
    whether the current piece is overdue, and starts again if not.
    """

    def __init__(self, call: Any, timeout: PieceTimeout) -> None:
        self._call = call
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the timer, unless it runs already or the next piece may take any time."""
        if self._handle is None and self._timeout.due < math.inf:
            self._handle = self._loop.call_later(self._timeout.due - time.monotonic(), self._fire)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _fire(self) -> None:
        self._handle = None
        if self._timeout.is_over(time.monotonic()):
            self._call.cancel()
        else:
            self.start()
