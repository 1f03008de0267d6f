"""A stand-in for an OpenAI-compatible server that answers every chat after a time.

It costs as little processor time as possible, because it shares the machine with the clients that
are measured: HTTP is read only as far as a client's requests need it, and every answer is the same.

    python -m bench.measurements.openai_server SECONDS SPREAD

prints its port. An answer takes SECONDS, at random longer or shorter by up to the fraction SPREAD.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

TOKENS = 40
TEXT = "The sky is blue because air scatters short waves of light more than long ones. " * 2
BODY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "stand-in",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": TOKENS, "total_tokens": 12 + TOKENS},
}
MODELS = {"object": "list", "data": [{"id": "stand-in", "object": "model"}]}


def response(content: object) -> bytes:
    body = json.dumps(content).encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self, seconds: float, spread: float) -> None:
        self._seconds, self._spread = seconds, spread
        self._answer, self._models = response(BODY), response(MODELS)
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, separator, body = self._data.partition(b"\r\n\r\n")
        if not separator:
            return
        name, colon, rest = head.lower().partition(b"content-length:")
        length = int(rest.split(b"\r\n", 1)[0]) if colon else 0
        if len(body) < length:
            return
        self._data = body[length:]
        if name.startswith(b"get"):
            self._write(self._models)
            return
        factor = 1 + self._spread * (2 * random.random() - 1)
        asyncio.get_running_loop().call_later(self._seconds * factor, self._write, self._answer)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


async def main(seconds: float, spread: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(seconds, spread), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*map(float, sys.argv[1:3])))
