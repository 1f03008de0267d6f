"""Chats with any server of OpenAI's API, over the standard library's HTTP."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from nemotron_client.exceptions import (
    ClientError,
    ConnectionFailed,
    RequestRefused,
    RequestTimeout,
    ServerFailed,
    from_http_status,
)
from nemotron_core.generation import Generation, Piece

PATH = "/v1"
DATA = b"data:"
LAST = b"[DONE]"
ERROR_BYTES = 10_000
"""Largest part of an error's body that is read."""
CONNECT_SECONDS = 10.0
FINISH_REASONS = {"content_filter": "stop", "tool_calls": "stop"}
"""Reasons of OpenAI's that this project does not have."""


class OpenAIChat:
    """A server and a model of OpenAI's API.

    `url` is `http://HOST:PORT` or `https://…`, with or without `/v1`. Without a `model`, the first
    one of the server is asked. Raises `ClientError` if the server does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
    ) -> None:
        self.url = url
        parts = urlsplit(url)
        try:
            self._port = parts.port
        except ValueError as error:
            raise RequestRefused(f"{url!r} has no valid port") from error
        if not parts.hostname:
            raise RequestRefused(f"{url!r} names no host")
        self._host, self._is_secure = parts.hostname, parts.scheme == "https"
        path = parts.path.rstrip("/")
        self._path = path if path.endswith(PATH) else path + PATH
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self.model = model or self._first_model()

    def __enter__(self) -> OpenAIChat:
        return self

    def __exit__(self, *_error: object) -> None:
        """Do nothing: a connection lasts as long as its answer."""

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], generation: Generation = Generation()
    ) -> Generator[Piece, None, None]:
        """Yield the answer as it is generated. Closing the generator stops the request.

        Raises `ClientError`.
        """
        body = chat_body(self.model, messages, generation)
        with closing(self._connect(self._timeout)) as connection:
            response = self._send(connection, "POST", "/chat/completions", json.dumps(body))
            yield from read_pieces(self._lines(response))

    def _first_model(self) -> str:
        with closing(self._connect(self._timeout or CONNECT_SECONDS)) as connection:
            response = self._send(connection, "GET", "/models", None)
            try:
                return str(json.loads(response.read())["data"][0]["id"])
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ServerFailed(f"{self.url} lists no models: name one with --model") from error
            except (OSError, http.client.HTTPException) as error:
                raise self._broken(error) from error

    def _connect(self, timeout: float | None) -> http.client.HTTPConnection:
        if self._is_secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout, context=context
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: str | None
    ) -> http.client.HTTPResponse:
        """Return a response with status 200. Raises `ClientError`."""
        try:
            connection.request(method, self._path + path, body, self._headers)
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                text = response.read(ERROR_BYTES).decode(errors="replace")
                raise from_http_status(response.status, error_message(text), self.url)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        return response

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            yield from response
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> ClientError:
        if isinstance(error, TimeoutError):
            return RequestTimeout(f"no answer from {self.url} in time")
        return ConnectionFailed(f"no answer from {self.url}: {error or type(error).__name__}")


def speaks_openai(url: str, api_key: str | None = None) -> bool:
    """Return whether an `http(s)://` URL is of a server of OpenAI's API, and not Triton's own.

    Triton has no `/v1`. A server that refuses the key, or does not answer, is taken for one.
    """
    try:
        OpenAIChat(url, api_key=api_key)
    except RequestRefused as error:
        return not any(f"status {status}:" in str(error) for status in (400, 404, 405))
    except ServerFailed:
        return False
    except ClientError:
        return True
    return True


def chat_body(
    model: str, messages: Sequence[Mapping[str, Any]], generation: Generation
) -> dict[str, Any]:
    """Return the body of a streamed request. Without a temperature, it asks for greedy decoding.

    >>> body = chat_body("m", [], Generation(max_tokens=5, seed=1, stop_words=("x",)))
    >>> {name: body[name] for name in ("max_tokens", "temperature", "seed", "stop")}
    {'max_tokens': 5, 'temperature': 0.0, 'seed': 1, 'stop': ['x']}
    """
    optional = {
        "top_p": generation.top_p,
        "seed": generation.seed,
        "stop": list(generation.stop_words) or None,
    }
    return {
        "model": model,
        "messages": list(messages),
        "max_tokens": generation.max_tokens,
        "temperature": generation.temperature or 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in optional.items() if value is not None},
    }


def read_pieces(lines: Iterator[bytes]) -> Generator[Piece, None, None]:
    """Yield the pieces of a stream of events. Raises `ServerFailed` if an event has an error.

    >>> events = [b'data: {"choices": [{"delta": {"content": "Hi"}}]}', b"data: [DONE]"]
    >>> [piece.text for piece in read_pieces(iter(events))]
    ['Hi']
    """
    for line in lines:
        data = line.removeprefix(DATA).strip()
        if not line.startswith(DATA) or data == LAST:
            continue
        try:
            event = json.loads(data)
            if "error" in event:
                raise ServerFailed(error_message(data.decode()))
            choice = (event.get("choices") or [{}])[0]
            usage = event.get("usage") or {}
            reason = choice.get("finish_reason") or ""
            yield Piece(
                text=(choice.get("delta") or {}).get("content") or "",
                finish_reason=FINISH_REASONS.get(reason, reason),
                num_input_tokens=usage.get("prompt_tokens") or 0,
                num_output_tokens=usage.get("completion_tokens") or 0,
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ServerFailed(f"no event of OpenAI's API: {data[:200]!r}") from error


def error_message(text: str) -> str:
    """Return the message in an error's body, or the body itself if it has none.

    >>> error_message('{"error": {"message": "no such model"}}')
    'no such model'
    """
    try:
        error = json.loads(text)["error"]
        return str(error["message"]) if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        return text
