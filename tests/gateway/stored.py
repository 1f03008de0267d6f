"""A gateway with files and batches inside the test, and OpenAI's own library before it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types import Batch

from nemotron_core.errors import ErrorKind
from nemotron_core.generation import Generation, Piece, Prompt
from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_gateway.app import Gateway
from nemotron_gateway.backend import Backend, ModelFacts
from nemotron_gateway.keys import Keys
from nemotron_gateway.settings import Files, GatewaySettings
from tests.gateway.process import MODEL

CHAT = "/v1/chat/completions"
FINAL = {"completed", "failed", "expired", "cancelled"}


@dataclass
class EchoEngine:
    """Answers each chat with its question. The question "refuse" is refused, "break" fails."""

    slots: int = 8
    held: asyncio.Event | None = None
    """If there is one, answers come when it is set."""
    asked: list[str] = field(default_factory=list)
    most: int = 0
    """Largest number of questions at once."""
    is_there: bool = True
    running: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def facts(_backend: Backend) -> ModelFacts:
            return ModelFacts(4096, self.slots, None, {"engine": "0123456789abcdef0"})

        async def is_ready(_backend: Backend) -> bool:
            return self.is_there

        async def generate(
            _backend: Backend,
            prompt: Prompt,
            _generation: Generation,
            _timeout: float | None = None,
        ) -> AsyncGenerator[Piece, None]:
            last: Any = prompt[-1]
            text = prompt if isinstance(prompt, str) else last["content"]
            self.asked.append(text)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                if self.held is not None:
                    await self.held.wait()
                if not self.is_there:
                    raise HttpError.of_kind(ErrorKind.UNREACHABLE, "the engine starts again")
                if text == "refuse":
                    raise bad_request("this is refused", "messages")
                if text == "break":
                    raise HttpError.of_kind(ErrorKind.FAILED, "this breaks")
                yield Piece(f"echo {text}", (1,), "stop", "", 3, 1)
            finally:
                self.running -= 1

        monkeypatch.setattr(Backend, "facts", facts)
        monkeypatch.setattr(Backend, "is_ready", is_ready)
        monkeypatch.setattr(Backend, "generate", generate)


@asynccontextmanager
async def opened(
    folder: Path, *keys: str, keys_file: Path | None = None, **files: Any
) -> AsyncIterator[Gateway]:
    """Yield a gateway that keeps files in `folder`, with keys and bounds of files."""
    settings = GatewaySettings(files=Files(folder=folder, **files), access_log=False)
    gateway = Gateway(settings, Keys(keys, keys_file))
    await gateway.open()
    try:
        yield gateway
    finally:
        await gateway.close()


def library(gateway: Gateway, key: str = "none") -> openai.AsyncOpenAI:
    """Return OpenAI's library, which asks the gateway without a network."""
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=gateway), timeout=None)
    return openai.AsyncOpenAI(
        base_url="http://localhost/v1", api_key=key, max_retries=0, http_client=http
    )


def line(custom_id: str, question: str | None = None, **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question or custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body} | more


def content(lines: Sequence[object]) -> bytes:
    return "".join(
        (text if isinstance(text, str) else json.dumps(text)) + "\n" for text in lines
    ).encode()


async def upload(client: openai.AsyncOpenAI, lines: Sequence[object]) -> str:
    file = await client.files.create(file=("in.jsonl", content(lines)), purpose="batch")
    return file.id


async def begin(client: openai.AsyncOpenAI, lines: Sequence[object], **more: Any) -> Batch:
    file_id = await upload(client, lines)
    settings: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h"} | more
    return await client.batches.create(input_file_id=file_id, **settings)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    """Return a batch when it has ended."""
    while batch.status not in FINAL:
        await asyncio.sleep(0.005)
        batch = await client.batches.retrieve(batch.id)
    return batch


async def run(client: openai.AsyncOpenAI, lines: Sequence[object], **more: Any) -> Batch:
    return await ended(client, await begin(client, lines, **more))


async def read(client: openai.AsyncOpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """Return the lines of a file by their custom_ids, which must be there once."""
    if file_id is None:
        return {}
    lines = [json.loads(x) for x in (await client.files.content(file_id)).text.splitlines()]
    by_name = {entry["custom_id"]: entry for entry in lines}
    assert len(by_name) == len(lines)
    return by_name


async def texts(client: openai.AsyncOpenAI, batch: Batch) -> dict[str, str]:
    """Return the answers of a batch by their custom_ids."""
    found = await read(client, batch.output_file_id)
    return {
        name: entry["response"]["body"]["choices"][0]["message"]["content"]
        for name, entry in found.items()
    }
