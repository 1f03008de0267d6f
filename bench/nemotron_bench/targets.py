"""What is measured: a server, asked for one streamed answer at a time over one of its protocols."""

from __future__ import annotations

import http.client
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from nemotron_core.errors import NemotronError

TIMEOUT = 600.0
"""Seconds without a sign of life after which a request has failed."""


class AskFailed(Exception):
    """A request that ended in an error; `str()` is its reason."""


@dataclass(frozen=True)
class Event:
    """Something of an answer has come; the counts are the server's, 0 where it has not said."""

    has_text: bool
    input_tokens: int = 0
    output_tokens: int = 0
    """So far."""


class Target(Protocol):
    """May be used by many threads at once."""

    name: str

    def request(self, prompt: str, max_tokens: int) -> bytes:
        """What to send for an answer of exactly `max_tokens`."""

    def stream(self, request: bytes) -> Iterator[bytes]:
        """The answer's messages as they come; AskFailed says why there are none.

        What is not read costs nothing: a bench that reads all of it would measure itself.
        """

    def read(self, message: bytes) -> Event:
        """What a message says, AskFailed if an error; the last one has the counts."""

    def close(self) -> None: ...


def open_target(url: str, model: str | None) -> Target:
    """By the URL's scheme: `grpc://host:port` is Triton, `http://host:port` an OpenAI API."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        host = f"{parts.hostname}:{parts.port}" if parts.hostname and parts.port else None
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("", "grpc", "http"):
        raise NemotronError(
            f"{url!r} is no server",
            where="--url",
            remedy="use grpc://host:8001 for Triton, http://host:1424 for the gateway",
        )
    if parts.scheme == "http":
        return OpenAITarget(host, model or "nemotron-4-340b-instruct")
    return TritonTarget(host, model or "ensemble")


class TritonTarget:
    """A text model of Triton, over gRPC."""

    def __init__(self, host: str, model: str) -> None:
        import grpc.experimental  # noqa: PLC0415  # of the extra that not everyone needs
        from tritonclient.grpc import service_pb2  # noqa: PLC0415

        self.name = f"grpc://{host} {model}"
        self.host, self.model = host, model
        self._response = service_pb2.ModelStreamInferResponse
        # Whoever waits for a message takes it from the network itself. Else a thread of the channel
        # takes it and wakes the one that waits, which doubles what a message costs.
        alone = (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1)
        self._channel = grpc.insecure_channel(host, options=[alone])
        # A stream of one request, then; a server sees no difference.
        self._call = self._channel.unary_stream("/inference.GRPCInferenceService/ModelStreamInfer")

    def request(self, prompt: str, max_tokens: int) -> bytes:
        """See `Target`; a ModelInferRequest."""
        from nemotron_client.request import generation_request  # noqa: PLC0415
        from nemotron_core.generation import Generation  # noqa: PLC0415

        # No end token before the last one: so every answer has the length that was asked for.
        generation = Generation(max_tokens=max_tokens, min_tokens=max_tokens)
        request = generation_request(self.model, uuid.uuid4().hex, prompt, generation, stream=True)
        serialized: bytes = request.SerializeToString()
        return serialized

    def stream(self, request: bytes) -> Iterator[bytes]:
        """See `Target`."""
        import grpc  # noqa: PLC0415

        call = self._call(request, timeout=TIMEOUT)
        try:
            yield from call
        except grpc.RpcError as error:
            raise AskFailed(f"{error.code().name}: {error.details()}") from error
        finally:
            call.cancel()

    def read(self, message: bytes) -> Event:
        """See `Target`."""
        from google.protobuf.message import DecodeError  # noqa: PLC0415

        try:
            response = self._response.FromString(message)
        except DecodeError as error:
            raise AskFailed(f"no response of a Triton server: {message[:200]!r}") from error
        if response.error_message:
            raise AskFailed(response.error_message)
        answer = response.infer_response
        names = (output.name for output in answer.outputs)
        raw = dict(zip(names, answer.raw_output_contents, strict=False))
        counts = (
            int.from_bytes(raw.get(name, b""), "little")
            for name in ("num_input_tokens", "num_output_tokens")
        )
        return Event(len(raw.get("text_output", b"")) > 4, *counts)

    def close(self) -> None:
        """See `Target`."""
        self._channel.close()


class OpenAITarget:
    """An OpenAI API, `/v1/completions`, over HTTP; a connection for each request.

    The key is taken from NEMOTRON_API_KEY.
    """

    def __init__(self, host: str, model: str) -> None:
        self.name = f"http://{host} {model}"
        self.host, self.model = host, model
        self.api_key = os.environ.get("NEMOTRON_API_KEY")
        self._headers = {"Content-Type": "application/json"}
        if self.api_key:
            self._headers["Authorization"] = f"Bearer {self.api_key}"

    def request(self, prompt: str, max_tokens: int) -> bytes:
        """See `Target`; a body in JSON."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "min_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(body).encode()

    def stream(self, request: bytes) -> Iterator[bytes]:
        """See `Target`."""
        connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT)
        try:
            connection.request("POST", "/v1/completions", request, self._headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                text = " ".join(response.read(2000).decode(errors="replace").split())
                raise AskFailed(f"HTTP {response.status}: {text}")
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield line[6:]
        except (OSError, http.client.HTTPException) as error:
            raise AskFailed(f"{type(error).__name__}: {error}") from error
        finally:
            with suppress(OSError):
                connection.close()

    def read(self, message: bytes) -> Event:
        """See `Target`."""
        try:
            event = json.loads(message)
            if "error" in event:
                raise AskFailed(json.dumps(event["error"]))
            has_text = any(choice["text"] for choice in event["choices"])
            usage = event.get("usage") or {}
            counts = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AskFailed(f"no event of an OpenAI API: {message[:200]!r}") from error
        return Event(has_text, *counts)

    def close(self) -> None:
        """Nothing stays open."""
