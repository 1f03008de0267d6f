"""Other ways to send a file of chats, to measure `nemotron batch` against.

    python -m bench.measurements.batch_peers NAME URL INPUT OUTPUT CONCURRENCY

`aiohttp` is a plain loop, as short as it can be: no retries, nothing durable, everything in memory.
`openai` is the same loop around OpenAI's own library.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai

Send = Callable[[list[dict[str, str]]], Awaitable[Any]]
SETTINGS: dict[str, Any] = {"model": "stand-in", "max_tokens": 1024, "temperature": 0.0}


async def send_all(send: Send, source: Path, output: Path, concurrency: int) -> None:
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    slots = asyncio.Semaphore(concurrency)
    with output.open("w") as file:

        async def handle(row: dict[str, Any]) -> None:
            async with slots:
                answer = await send(row["messages"])
            file.write(json.dumps({"custom_id": row["custom_id"], "response": answer}) + "\n")

        await asyncio.gather(*map(handle, rows))


async def with_aiohttp(url: str, source: Path, output: Path, concurrency: int) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def send(messages: list[dict[str, str]]) -> Any:
            body = {**SETTINGS, "messages": messages}
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                return await response.json()

        await send_all(send, source, output, concurrency)


async def with_openai(url: str, source: Path, output: Path, concurrency: int) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:

        async def send(messages: list[dict[str, str]]) -> Any:
            answer = await client.chat.completions.create(messages=messages, **SETTINGS)
            return answer.model_dump()

        await send_all(send, source, output, concurrency)


PEERS = {"aiohttp": with_aiohttp, "openai": with_openai}

if __name__ == "__main__":
    name, url, source, output, concurrency = sys.argv[1:]
    asyncio.run(PEERS[name](url, Path(source), Path(output), int(concurrency)))
