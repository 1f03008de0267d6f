"""Batches whose gateway or engine ends meanwhile: no request is lost, none is answered twice."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nemotron_gateway.batches.execution import Execution
from nemotron_gateway.batches.records import Batch, FileObject, StoredBatch, new_id, now
from nemotron_gateway.batches.store import BATCH, FILE, OwnerStore
from nemotron_gateway.settings import GatewaySettings
from tests.gateway.stored import (
    CHAT,
    EchoEngine,
    begin,
    content,
    ended,
    library,
    line,
    opened,
    texts,
    until,
)

ROWS = [line(f"r{number}") for number in range(60)]
ECHOES = {f"r{number}": f"echo r{number}" for number in range(60)}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> EchoEngine:
    engine = EchoEngine()
    engine.install(monkeypatch)
    return engine


def test_a_gateway_that_drains_and_starts_again(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        engine.held = asyncio.Event()
        async with opened(tmp_path) as gateway:
            batch = await begin(library(gateway), ROWS)
            await until(lambda: engine.running == 7)
            gateway.drain()
            assert gateway.running == 1  # what runs is not cut off
            engine.held.set()
            await until(lambda: gateway.running == 0)
        assert len(engine.asked) < 60
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            assert await texts(client, await ended(client, batch)) == ECHOES
        assert Counter(engine.asked) == Counter(ECHOES.keys())

    asyncio.run(scenario())


def test_a_gateway_that_ends_at_once(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        engine.held = asyncio.Event()
        async with opened(tmp_path) as gateway:
            batch = await begin(library(gateway), ROWS)
            await until(lambda: engine.running == 7)
        assert engine.running == 0
        engine.held.set()
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            batch = await ended(client, batch)
            assert (batch.status, await texts(client, batch)) == ("completed", ECHOES)

    asyncio.run(scenario())


def test_an_engine_that_starts_again(
    engine: EchoEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemotron_data.batch.server.FIRST_DELAY", 0.01)

    async def scenario() -> None:
        engine.held = asyncio.Event()
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            batch = await begin(client, ROWS)
            await until(lambda: engine.running == 7)
            engine.is_there = False
            engine.held.set()
            await until(lambda: engine.running == 0)
            engine.is_there = True
            assert await texts(client, await ended(client, batch)) == ECHOES

    asyncio.run(scenario())


class Inside:
    """A gateway that answers each request with its question."""

    async def answer(self, _owner: str, _path: str, body: bytes) -> tuple[int, str, bytes]:
        question = msgspec.json.decode(body)["messages"][-1]["content"]
        message = {"role": "assistant", "content": f"echo {question}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, "id", msgspec.json.encode({"choices": [choice]})

    async def identity(self) -> dict[str, str | None] | None:
        return {}


class Killed(BaseException):
    """Takes the place of a kill."""


def test_a_kill_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is written is made durable, so each step begins or ends with that."""
    fsync = os.fsync
    left = 0

    def dying_fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", dying_fsync)

    async def lives(steps: int, folder: Path) -> tuple[bool, OwnerStore, str]:
        nonlocal left
        left = 1_000_000
        store = OwnerStore(folder)
        path = store.new_path()
        path.write_bytes(content(ROWS))
        file_id, batch_id = new_id(FILE), new_id(BATCH)
        store.add_file(path, file_of(file_id, path.stat().st_size))
        batch = Batch(
            id=batch_id,
            endpoint=CHAT,
            input_file_id=file_id,
            completion_window="24h",
            created_at=now(),
            expires_at=now() + 1000,
        )
        store.begin_batch(StoredBatch(batch=batch))
        execution = Execution.of(store, "everybody", batch_id, GatewaySettings(), Inside())
        left = steps
        try:
            await asyncio.to_thread(execution.run)
        except Killed:
            return False, store, batch_id
        finally:
            left = 1_000_000
        return True, store, batch_id

    async def scenario() -> int:
        for steps in itertools.count():
            folder = tmp_path / str(steps)
            is_whole, store, batch_id = await lives(steps, folder)
            if not is_whole:
                store = OwnerStore(folder)
                execution = Execution.of(store, "everybody", batch_id, GatewaySettings(), Inside())
                await asyncio.to_thread(execution.run)
            check(store, batch_id)
            if is_whole:
                return steps
        raise AssertionError

    assert asyncio.run(scenario()) > 12


def file_of(file_id: str, size: int) -> FileObject:
    return FileObject(
        id=file_id, bytes=size, created_at=now(), filename="in.jsonl", purpose="batch"
    )


def check(store: OwnerStore, batch_id: str) -> None:
    """Check that a batch is complete, and that nothing else is there."""
    batch = store.stored(batch_id).batch
    assert batch.status == "completed"
    assert batch.output_file_id and batch.error_file_id is None
    lines: list[Any] = [
        msgspec.json.decode(text)
        for text in store.content(batch.output_file_id).read_bytes().splitlines()
    ]
    found = [
        (entry["custom_id"], entry["response"]["body"]["choices"][0]["message"]["content"])
        for entry in lines
    ]
    assert sorted(found) == sorted(ECHOES.items())
    files = {batch.input_file_id, batch.output_file_id}
    names = {path.name for path in store.folder.iterdir()}
    assert names == files | {f"{name}.json" for name in (*files, batch_id)}
