"""The client for asyncio: the methods of `Client`, with `await` and `async for`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from nemotron_client.async_grpc_wire import AsyncGrpcWire
from nemotron_client.async_http_wire import AsyncHttpWire
from nemotron_client.base_client import BaseClient
from nemotron_client.exceptions import ClientError
from nemotron_client.exchange import Exchange, Messages, check_single_answer
from nemotron_client.settings import RequestOptions
from nemotron_core.generation import Generation, Piece, Prompt


class AsyncClient(BaseClient):
    """Talks to Triton over gRPC or HTTP from one event loop.

    Closing an iterator before its end (`aclose`), or cancelling the task that reads it, stops the
    request in the engine too. If a loop is left with `break`, Python closes the iterator only when
    it is garbage-collected: use `contextlib.aclosing`.
    """

    _grpc_wire = AsyncGrpcWire
    _http_wire = AsyncHttpWire
    _semaphore = asyncio.Semaphore

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. Requests that still run end with `ConnectionFailed`."""
        await self._wire.aclose()

    async def is_ready(self) -> bool:
        """Return whether the server answers and the model accepts requests."""
        return bool(await self._wire.is_ready(self.model))

    async def model_parameters(self, model: str) -> dict[str, str]:
        """Return the `parameters` of a model's configuration. Raises `ClientError`."""
        parameters: dict[str, str] = await self._wire.parameters(model)
        return parameters

    async def chat(
        self,
        messages: Messages,
        generation: Generation = Generation(),
        options: RequestOptions = RequestOptions(),
    ) -> Piece:
        """Return the whole answer to a conversation. Raises `ClientError`."""
        return await self._whole(messages, generation, options)

    def stream_chat(
        self,
        messages: Messages,
        generation: Generation = Generation(),
        options: RequestOptions = RequestOptions(),
    ) -> AsyncGenerator[Piece, None]:
        """Yield the answer to a conversation as it is generated. Raises `ClientError`."""
        return self.generate(messages, generation, options, stream=True)

    async def complete(
        self,
        prompt: str | Sequence[int],
        generation: Generation = Generation(),
        options: RequestOptions = RequestOptions(),
    ) -> Piece:
        """Return the whole completion of a raw prompt. Raises `ClientError`."""
        return await self._whole(prompt, generation, options)

    def stream_complete(
        self,
        prompt: str | Sequence[int],
        generation: Generation = Generation(),
        options: RequestOptions = RequestOptions(),
    ) -> AsyncGenerator[Piece, None]:
        """Yield the completion of a raw prompt as it is generated. Raises `ClientError`."""
        return self.generate(prompt, generation, options, stream=True)

    async def generate(
        self,
        prompt: Prompt,
        generation: Generation = Generation(),
        options: RequestOptions = RequestOptions(),
        *,
        stream: bool = False,
    ) -> AsyncGenerator[Piece, None]:
        """Yield one piece for each answer to a prompt, or with `stream` all pieces as they come.

        With `num_return_sequences`, the `sequence_index` of a piece says which answer it belongs
        to. Raises `ClientError`.
        """
        for attempt in itertools.count(1):
            exchange = Exchange(self.model, prompt, generation, options, stream=stream)
            try:
                async with self._limit, aclosing(self._wire.pieces(exchange)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except ClientError as error:
                delay = self._delay(attempt, error, exchange)
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def _whole(
        self, prompt: Prompt, generation: Generation, options: RequestOptions
    ) -> Piece:
        check_single_answer(generation)
        (piece,) = [piece async for piece in self.generate(prompt, generation, options)]
        return piece
