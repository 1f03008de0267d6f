"""A stand-in for Triton's HTTP that sends tokens at a fixed pace on each stream, as a large model.

`python -m bench.measurements.paced_triton` prints its HTTP port and serves until it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

PACE = 30.0
"""Tokens per second on each stream, unless it is given."""
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
PARAMETERS = {"max_seq_len": "4096", "tokenizer_path": "/none"}
CONFIGURATION = json.dumps(
    {
        "max_batch_size": 256,
        "parameters": {name: {"string_value": value} for name, value in PARAMETERS.items()},
    }
).encode()
"""The model's configuration, for which the gateway asks."""


class PacedTriton:
    """Answers every `generate_stream` with `max_tokens` tokens, one every 1 / `pace` seconds."""

    def __init__(self, pace: float) -> None:
        self._pace = pace

    async def serve(self) -> None:
        """Serve on a free port of the loopback interface."""
        server = await asyncio.start_server(self._answer_all, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                if head.startswith(b"get "):
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONFIGURATION)
                    )
                    writer.write(CONFIGURATION)
                    continue
                tokens = json.loads(await reader.readexactly(length))["max_tokens"]
                await self._answer(writer, tokens)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, tokens: int) -> None:
        start = time.monotonic()
        head = HEAD
        for number in range(1, tokens + 1):
            await asyncio.sleep(start + number / self._pace - time.monotonic())
            event = token_event(number, is_last=number == tokens)
            writer.write(head + f"{len(event):x}\r\n".encode() + event + b"\r\n")
            head = b""
        writer.write(LAST_CHUNK)
        await writer.drain()


def token_event(number: int, *, is_last: bool) -> bytes:
    """Return the event with token `number`, with the outputs that the text model sends."""
    outputs: dict[str, object] = {"num_output_tokens": number, "output_token_ids": number}
    if is_last:
        outputs |= {"finish_reason": "length", "num_input_tokens": 5}
    outputs |= {"model_name": "tensorrt_llm_bls", "model_version": "1", "text_output": " word"}
    return b"data: " + json.dumps(outputs, separators=(",", ":")).encode() + b"\n\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pace", type=float, nargs="?", default=PACE, help="tokens per second")
    asyncio.run(PacedTriton(parser.parse_args().pace).serve())
