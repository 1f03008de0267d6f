"""Triton's HTTP for the blocking client: the asynchronous one in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator
from concurrent.futures import CancelledError
from contextlib import aclosing, suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from nemotron_client.async_http_wire import AsyncHttpWire
from nemotron_client.channel import Connection
from nemotron_client.exceptions import ClientError, ConnectionFailed
from nemotron_client.exchange import CLOSED, Exchange
from nemotron_core.generation import Piece

T = TypeVar("T")
_Items = SimpleQueue[Piece | Exception | None]


class HttpWire:
    """Connections to Triton's HTTP; may be used by several threads."""

    def __init__(self, connection: Connection) -> None:
        self._wire = AsyncHttpWire(connection)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Close the connections, which ends all their requests."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def is_ready(self, model: str) -> bool:
        """Return whether the server answers and the model accepts requests."""
        try:
            return self._run(self._wire.is_ready(model))
        except ClientError:
            return False

    def parameters(self, model: str) -> dict[str, str]:
        """Return the `parameters` of a model's configuration. Raises `ClientError`."""
        return self._run(self._wire.parameters(model))

    def pieces(self, exchange: Exchange) -> Generator[Piece, None, None]:
        """Yield the pieces of an answer. Closing the generator early stops the request."""
        items: _Items = SimpleQueue()
        task = self._run(self._start(exchange, items))
        try:
            while (item := items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            with suppress(ConnectionFailed):
                self._run(_end(task))

    async def _start(self, exchange: Exchange, items: _Items) -> asyncio.Task[None]:
        return asyncio.create_task(self._read(exchange, items))

    async def _read(self, exchange: Exchange, items: _Items) -> None:
        """Put all pieces into the queue, and at the end `None` or the exception."""
        last: Exception | None = None
        try:
            async with aclosing(self._wire.pieces(exchange)) as pieces:
                async for piece in pieces:
                    items.put(piece)
        except Exception as error:
            last = error
        except asyncio.CancelledError:
            last = exchange.cancelled()
        items.put(last)

    async def _close(self) -> None:
        await self._wire.aclose()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine. Raises `ConnectionFailed` if the client is closed."""
        with self._lock:  # what is started after `_close` would never end
            if self._is_closed:
                coroutine.close()
                raise ConnectionFailed(CLOSED)
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ConnectionFailed(CLOSED) from None


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
