"""The blocking client: one call, or a loop over the pieces of an answer."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import closing

from nemotron_client.base_client import BaseClient
from nemotron_client.exceptions import ClientError
from nemotron_client.exchange import Exchange, Messages, check_single_answer
from nemotron_client.grpc_wire import GrpcWire
from nemotron_client.http_wire import HttpWire
from nemotron_client.settings import RequestOptions
from nemotron_core.generation import Generation, Piece, Prompt


class Client(BaseClient):
    """Talks to Triton over gRPC or HTTP; may be used by several threads.

    Closing an iterator before its end, or leaving its loop by an exception, stops the request in
    the engine too. `AsyncClient` has the same methods with `await`.
    """

    _grpc_wire = GrpcWire
    _http_wire = HttpWire
    _semaphore = threading.BoundedSemaphore

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Requests that still run end with `ConnectionFailed`."""
        self._wire.close()

    def is_ready(self) -> bool:
        """Return whether the server answers and the model accepts requests."""
        return bool(self._wire.is_ready(self.model))

    def model_parameters(self, model: str) -> dict[str, str]:
        """Return the `parameters` of a model's configuration. Raises `ClientError`."""
        parameters: dict[str, str] = self._wire.parameters(model)
        return parameters

    def chat(
        self,
        messages: Messages,
        generation: Generation = Generation(),
        options: RequestOptions = RequestOptions(),
    ) -> Piece:
        """Return the whole answer to a conversation. Raises `ClientError`."""
        return self._whole(messages, generation, options)

    def stream_chat(
        self,
        messages: Messages,
        generation: Generation = Generation(),
        options: RequestOptions = RequestOptions(),
    ) -> Generator[Piece, None, None]:
        """Yield the answer to a conversation as it is generated. Raises `ClientError`."""
        return self.generate(messages, generation, options, stream=True)

    def complete(
        self,
        prompt: str | Sequence[int],
        generation: Generation = Generation(),
        options: RequestOptions = RequestOptions(),
    ) -> Piece:
        """Return the whole completion of a raw prompt. Raises `ClientError`."""
        return self._whole(prompt, generation, options)

    def stream_complete(
        self,
        prompt: str | Sequence[int],
        generation: Generation = Generation(),
        options: RequestOptions = RequestOptions(),
    ) -> Generator[Piece, None, None]:
        """Yield the completion of a raw prompt as it is generated. Raises `ClientError`."""
        return self.generate(prompt, generation, options, stream=True)

    def generate(
        self,
        prompt: Prompt,
        generation: Generation = Generation(),
        options: RequestOptions = RequestOptions(),
        *,
        stream: bool = False,
    ) -> Generator[Piece, None, None]:
        """Yield one piece for each answer to a prompt, or with `stream` all pieces as they come.

        With `num_return_sequences`, the `sequence_index` of a piece says which answer it belongs
        to. Raises `ClientError`.
        """
        for attempt in itertools.count(1):
            exchange = Exchange(self.model, prompt, generation, options, stream=stream)
            try:
                with self._limit, closing(self._wire.pieces(exchange)) as pieces:
                    yield from pieces
                return
            except ClientError as error:
                delay = self._delay(attempt, error, exchange)
                if delay is None:
                    raise
            time.sleep(delay)

    def _whole(self, prompt: Prompt, generation: Generation, options: RequestOptions) -> Piece:
        check_single_answer(generation)
        (piece,) = self.generate(prompt, generation, options)
        return piece
