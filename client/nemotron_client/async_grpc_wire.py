"""Triton's gRPC for the asynchronous client."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from nemotron_client.channel import Connection
from nemotron_client.exceptions import ClientError
from nemotron_client.exchange import Exchange, PieceTimeout
from nemotron_client.grpc_calls import GrpcCalls, read_parameters, read_response
from nemotron_core.generation import Piece


class AsyncGrpcWire:
    """A connection to Triton's gRPC, of one event loop."""

    def __init__(self, connection: Connection) -> None:
        self._timeouts = connection.timeouts
        self._calls = GrpcCalls(grpc.aio, connection)
        self._closed = False
        self._background: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Close the connection, which ends all its requests."""
        while self._background:
            await asyncio.wait(self._background)
        self._closed = True
        await self._calls.channel.close()

    async def is_ready(self, model: str) -> bool:
        """Return whether the server answers and the model accepts requests."""
        try:
            return bool((await self._calls.model_ready(model)).ready)
        except (grpc.RpcError, ClientError):
            return False

    async def parameters(self, model: str) -> dict[str, str]:
        """Return the `parameters` of a model's configuration. Raises `ClientError`."""
        try:
            return read_parameters(await self._calls.model_config(model))
        except grpc.RpcError as error:
            raise self._calls.error(error) from error

    async def pieces(self, exchange: Exchange) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of an answer. Closing the generator early stops the request."""
        call = self._calls.generate(exchange)
        timeout = PieceTimeout(self._timeouts)
        timer = _Timer(call, timeout)
        try:
            timeout.start(time.monotonic())
            timer.start()
            async for response in call:
                timeout.stop()
                for piece in read_response(response, exchange):
                    yield piece
                timeout.start(time.monotonic())
                timer.start()
            exchange.end()
        except grpc.RpcError as error:
            raise self._calls.failure(error, exchange, timeout.message) from error
        except asyncio.CancelledError:
            # gRPC raises this too when the timer or `aclose` cancelled the call, not our task.
            if timeout.message or self._closed:
                raise exchange.cancelled(timeout.message) from None
            raise
        finally:
            timer.cancel()
            # In a task of its own, because this one may have been cancelled itself.
            if not exchange.is_over:
                self._run_in_background(self._stop(call, exchange))
            elif not call.done():
                self._run_in_background(_drain(call))

    async def _stop(self, call: Any, exchange: Exchange) -> None:
        call.cancel()
        with suppress(ClientError):  # this client may be closed
            await _drain(self._calls.stop(exchange))

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
