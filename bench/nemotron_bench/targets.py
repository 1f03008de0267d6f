"""The measured servers: one streamed request at a time, over one of their protocols."""

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

KEY_VARIABLE = "NEMOTRON_API_KEY"
TIMEOUT = 600.0
"""Seconds without a response after which a request has failed."""


class RequestFailed(Exception):
    """A request that ended in an error; `str()` is the reason."""


@dataclass(frozen=True)
class Event:
    """Content of one message. Token counts are the server's, 0 where the message has none."""

    has_text: bool
    input_tokens: int = 0
    output_tokens: int = 0
    """Number of tokens generated so far."""


class Target(Protocol):
    """A server and a model. May be used by many threads at once."""

    name: str

    def request(self, prompt: str, max_tokens: int) -> bytes:
        """Return the encoded request for an answer of exactly `max_tokens` tokens."""

    def stream(self, request: bytes) -> Iterator[bytes]:
        """Send a request and yield the encoded messages of its answer.

        The messages are not decoded: a bench that decodes all of them would measure itself. Raises
        `RequestFailed` if the request fails.
        """

    def read(self, message: bytes) -> Event:
        """Decode a message; the last one has the counts. Raises `RequestFailed` for an error."""

    def close(self) -> None: ...


def open_target(url: str, model: str | None) -> Target:
    """Return the target of a URL: `grpc://host:port` for Triton, `http://host:port` for OpenAI.

    Raises `NemotronError` if the URL is neither.
    """
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
        return OpenAITarget(host, model or _first_model(host))
    return TritonTarget(host, model or "ensemble")


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    return headers | ({"Authorization": f"Bearer {api_key}"} if api_key else {})


def _first_model(host: str) -> str:
    """Return the name of a server's first model. Raises `NemotronError` if it lists none."""
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT)
    try:
        connection.request("GET", "/v1/models", headers=_headers(os.environ.get(KEY_VARIABLE)))
        response = connection.getresponse()
        text = response.read()
        if response.status == http.HTTPStatus.OK:
            return str(json.loads(text)["data"][0]["id"])
        reason = f"HTTP {response.status}"
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    raise NemotronError(
        f"/v1/models names no model: {reason}",
        where=f"http://{host}",
        remedy="start the server, set NEMOTRON_API_KEY, or name a model with --model",
    )


class TritonTarget:
    """A text model on Triton, over gRPC."""

    def __init__(self, host: str, model: str) -> None:
        import grpc.experimental  # noqa: PLC0415  # only with the extra `client`
        from tritonclient.grpc import service_pb2  # noqa: PLC0415

        self.name = f"grpc://{host} {model}"
        self.host, self.model = host, model
        self._response = service_pb2.ModelStreamInferResponse
        # The thread that waits for a message reads the network itself. Otherwise a thread of the
        # channel reads and wakes it, which doubles the cost of a message.
        single_threaded = (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1)
        self._channel = grpc.insecure_channel(host, options=[single_threaded])
        # Declared with a single request; on the wire it is the same as a stream of one request.
        self._call = self._channel.unary_stream("/inference.GRPCInferenceService/ModelStreamInfer")

    def request(self, prompt: str, max_tokens: int) -> bytes:
        """See `Target`. Returns a serialized `ModelInferRequest`."""
        from nemotron_client.request import generation_request  # noqa: PLC0415
        from nemotron_core.generation import Generation  # noqa: PLC0415

        # No token ends the answer, so that every one has the requested length. `min_tokens` would
        # do the same, but not every engine with a draft has it.
        generation = Generation(max_tokens=max_tokens, end_id=-1)
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
            raise RequestFailed(f"{error.code().name}: {error.details()}") from error
        finally:
            call.cancel()

    def read(self, message: bytes) -> Event:
        """See `Target`."""
        from google.protobuf.message import DecodeError  # noqa: PLC0415

        try:
            response = self._response.FromString(message)
        except DecodeError as error:
            raise RequestFailed(f"no response of a Triton server: {message[:200]!r}") from error
        if response.error_message:
            raise RequestFailed(response.error_message)
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
    """An OpenAI API's `/v1/completions` over HTTP, with one connection per request.

    The API key is the environment variable NEMOTRON_API_KEY.
    """

    def __init__(self, host: str, model: str) -> None:
        self.name = f"http://{host} {model}"
        self.host, self.model = host, model
        self.api_key = os.environ.get(KEY_VARIABLE)
        self._headers = _headers(self.api_key)

    def request(self, prompt: str, max_tokens: int) -> bytes:
        """See `Target`. Returns a JSON body."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
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
                raise RequestFailed(f"HTTP {response.status}: {text}")
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield line[6:]
        except (OSError, http.client.HTTPException) as error:
            raise RequestFailed(f"{type(error).__name__}: {error}") from error
        finally:
            with suppress(OSError):
                connection.close()

    def read(self, message: bytes) -> Event:
        """See `Target`."""
        try:
            event = json.loads(message)
            if "error" in event:
                raise RequestFailed(json.dumps(event["error"]))
            has_text = any(choice["text"] for choice in event["choices"])
            usage = event.get("usage") or {}
            counts = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestFailed(f"no event of an OpenAI API: {message[:200]!r}") from error
        return Event(has_text, *counts)

    def close(self) -> None:
        """Do nothing: no connection stays open."""
