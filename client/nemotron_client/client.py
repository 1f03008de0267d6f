"""The client that waits: one call, or a loop over the pieces of an answer."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nemotron_client.exceptions import (
    RequestRefused,
    ServerFailed,
    from_rpc_error,
    from_stream_error,
)
from nemotron_client.request import Generation, generation_request, stop_request
from nemotron_client.response import Piece, read_piece

MODEL = "ensemble"
ENGINE_MODEL = "tensorrt_llm"
MAX_MESSAGE_BYTES = 64 << 20
STOP_TIMEOUT = 5.0

Messages = Sequence[Mapping[str, str]]


class Client:
    """Talks to the ensemble over gRPC; may be shared between threads.

    `timeout` (seconds) bounds each request as a whole, None waits for ever. Closing an iterator
    before its end, or leaving its loop by an exception, stops the request in the engine too.
    """

    def __init__(self, url: str, *, timeout: float | None = None) -> None:
        self.url = url
        self.timeout = timeout
        self._channel = grpc.insecure_channel(
            url,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ],
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; requests that still run end with ConnectionFailed."""
        self._channel.close()

    def is_ready(self) -> bool:
        """Whether the server answers and the ensemble can be asked."""
        request = service_pb2.ModelReadyRequest(name=MODEL)
        try:
            return bool(self._stub.ModelReady(request, timeout=self.timeout).ready)
        except grpc.RpcError:
            return False

    def chat(self, messages: Messages, generation: Generation = Generation()) -> Piece:
        """The answer to a conversation, whole. Raises ClientError."""
        return self._whole(messages, generation)

    def stream_chat(
        self, messages: Messages, generation: Generation = Generation()
    ) -> Generator[Piece, None, None]:
        """The answer to a conversation as it is written. Raises ClientError."""
        return self._stream(messages, generation, stream=True)

    def complete(self, prompt: str, generation: Generation = Generation()) -> Piece:
        """What the model writes after a raw prompt, whole. Raises ClientError."""
        return self._whole(prompt, generation)

    def stream_complete(
        self, prompt: str, generation: Generation = Generation()
    ) -> Generator[Piece, None, None]:
        """What the model writes after a raw prompt, as it is written. Raises ClientError."""
        return self._stream(prompt, generation, stream=True)

    def _whole(self, prompt: str | Messages, generation: Generation) -> Piece:
        pieces = list(self._stream(prompt, generation, stream=False))
        return replace(
            pieces[-1],
            text="".join(piece.text for piece in pieces),
            token_ids=tuple(id_ for piece in pieces for id_ in piece.token_ids),
        )

    def _stream(
        self, prompt: str | Messages, generation: Generation, *, stream: bool
    ) -> Generator[Piece, None, None]:
        request_id = uuid.uuid4().hex
        try:
            request = generation_request(MODEL, request_id, prompt, generation, stream=stream)
        except ValueError as error:
            raise RequestRefused(str(error)) from error
        call = self._stub.ModelStreamInfer(iter([request]), timeout=self.timeout)
        finished = False
        try:
            for response in call:
                if response.error_message:
                    finished = True
                    raise from_stream_error(response.error_message)
                piece = read_piece(response.infer_response)
                finished = finished or bool(piece.finish_reason)
                yield piece
            if not finished:
                finished = True
                raise ServerFailed("the stream ended before the answer did")
        except grpc.RpcError as error:
            failure = from_rpc_error(error, self.url)
            finished = finished or isinstance(failure, RequestRefused)
            raise failure from error
        except ValueError as error:
            raise ServerFailed(str(error)) from error
        finally:
            if finished:
                # To the end: a cancel now could meet Triton's own, which then loses the request.
                with suppress(grpc.RpcError):
                    for _response in call:
                        pass
            else:
                call.cancel()
                self._stop(request_id)

    def _stop(self, request_id: str) -> None:
        """Free the engine now; the ensemble notices that its client has gone a token later."""
        request = stop_request(ENGINE_MODEL, request_id)
        # The server may be gone with the request, or this client closed (a ValueError).
        with suppress(grpc.RpcError, ValueError):
            for _response in self._stub.ModelStreamInfer(iter([request]), timeout=STOP_TIMEOUT):
                pass
