"""An HTTP server that answers as its script says, in the place of Triton."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

HEAD = b"HTTP/1.1 %d Scripted\r\nContent-Type: %s\r\n%s\r\n"
LAST_CHUNK = b"0\r\n\r\n"
LONG = 3600.0
"""A pause that no test waits for, in seconds."""
CLOSE = None
"""Step of a script that closes the connection."""

Step = bytes | float | None


def head(status: int = 200) -> bytes:
    return HEAD % (status, b"text/event-stream; charset=utf-8", b"Transfer-Encoding: chunked\r\n")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(**outputs: Any) -> bytes:
    """Return one response as Triton's `generate_stream` writes it."""
    named = {"model_name": "tensorrt_llm_bls", "model_version": "1"} | outputs
    return b"data: " + json.dumps(named, separators=(",", ":")).encode() + b"\n\n"


def stream(*events: bytes, status: int = 200) -> list[Step]:
    return [head(status), *map(chunk, events), LAST_CHUNK]


def plain(status: int, content: object) -> list[Step]:
    """Return an answer that Triton itself makes, without a model."""
    data = json.dumps(content).encode()
    length = b"Content-Length: %d\r\n" % len(data)
    return [HEAD % (status, b"application/json", length) + data]


def configuration(engine: str = "a" * 64) -> list[Step]:
    """Return the model's configuration as Triton answers it."""
    parameters = {"max_seq_len": "4096", "tokenizer_path": "/none", "engine": engine}
    named = {name: {"string_value": value} for name, value in parameters.items()}
    return plain(200, {"name": "tensorrt_llm_bls", "max_batch_size": 8, "parameters": named})


WORD = event(text_output=" word", output_token_ids=7, num_output_tokens=1)
LAST = event(text_output="", output_token_ids=[], finish_reason="length", num_output_tokens=1)
HEARTBEAT = event(text_output="", output_token_ids=[])


class ScriptedTriton:
    """Answers each request by the next of its scripts; the last one is used again.

    Of a script's steps, bytes are sent and a number is a pause in seconds. A question for the
    model's configuration is answered by `configuration`, if there is one, and not counted.
    """

    def __init__(
        self,
        *scripts: Sequence[Step],
        configuration: Sequence[Step] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._scripts = list(scripts)
        self.configuration = configuration
        self._tls = tls
        self.headers: list[dict[str, str]] = []
        """Headers of each request, their names in lower case."""
        self.requests: list[tuple[str, Any]] = []
        """Path and JSON of each request."""
        self.connections = 0
        self.disconnected = asyncio.Event()
        """Set when a client closes a connection."""

    async def __aenter__(self) -> ScriptedTriton:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = int(request.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length) or b"null")
                path = request.split()[1].decode()
                if self.configuration is not None and path.endswith("/config"):
                    await self._answer(reader, writer, self.configuration)
                    continue
                script = self._scripts[min(len(self.requests), len(self._scripts) - 1)]
                lines = request.decode().split("\r\n")[1:-2]
                self.headers.append({k.lower(): v for k, v in (x.split(": ", 1) for x in lines)})
                self.requests.append((path, body))
                await self._answer(reader, writer, script)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.disconnected.set()
        except asyncio.CancelledError:
            pass  # the test has ended
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, script: Sequence[Step]
    ) -> None:
        for step in script:
            if step is CLOSE:
                raise ConnectionError
            if isinstance(step, float):
                await self._pause(reader, step)
            else:
                writer.write(step)
                await writer.drain()

    async def _pause(self, reader: asyncio.StreamReader, seconds: float) -> None:
        """Wait, unless the client disconnects."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), seconds)
