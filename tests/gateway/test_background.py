"""Requests of batches run in the background: they leave room to those of clients."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import openai
import pytest

from nemotron_core.openai.errors import HttpError
from nemotron_gateway.admission import Admission
from nemotron_gateway.keys import ApiKey
from tests.gateway.process import MODEL
from tests.gateway.stored import EchoEngine, begin, ended, library, line, opened, until

ROWS = [line(f"r{number}") for number in range(60)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> EchoEngine:
    engine = EchoEngine()
    engine.install(monkeypatch)
    return engine


async def chat(client: openai.AsyncOpenAI) -> str | None:
    messages = [{"role": "user", "content": "now"}]
    answer = await client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore[arg-type]
    return answer.choices[0].message.content


def test_a_client_does_not_wait_for_a_batch(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        engine.held = asyncio.Event()
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            batch = await begin(client, ROWS)
            await until(lambda: engine.running == 7)  # of 8 slots
            answer = asyncio.create_task(chat(client))
            await until(lambda: engine.running == 8)
            assert engine.asked[-1] == "now"
            engine.held.set()
            assert await answer == "echo now"
            await ended(client, batch)
            page = gateway._metrics.page().decode()
        route = 'route="batch:/v1/chat/completions",status="200"'
        assert f"nemotron_gateway_requests_total{{{route}}} 60.0" in page

    asyncio.run(scenario())


def test_a_batch_leaves_room_to_its_own_key(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        engine.held = asyncio.Event()
        async with opened(tmp_path, "anna requests=3", "otto") as gateway:
            anna, otto = library(gateway, "anna"), library(gateway, "otto")
            slow, batch = await begin(anna, ROWS), await begin(otto, ROWS)
            await until(lambda: engine.running == 7)  # 2 of anna's, 5 of otto's
            answer = asyncio.create_task(chat(anna))
            await until(lambda: engine.running == 8)
            with pytest.raises(openai.RateLimitError, match="this key may have 3 prompts"):
                await chat(anna)
            engine.held.set()
            assert await answer == "echo now"
            for client, of_client in ((anna, slow), (otto, batch)):
                assert (await ended(client, of_client)).status == "completed"

    asyncio.run(scenario())


def test_what_a_key_may_never_have_is_refused(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, "anna tokens=50") as gateway:
            client = library(gateway, "anna")
            body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 51}
            small = body | {"max_tokens": 20}
            batch = await begin(client, [line("large", body=body), line("small", body=small)])
            batch = await ended(client, batch)
            assert batch.request_counts
            assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)

    asyncio.run(scenario())


def test_turns() -> None:
    """The oldest first, all in their limits; a large one needs half of the room."""

    async def scenario() -> None:
        admission = Admission(1000)
        running: list[str] = []
        key = ApiKey(b"a", requests=2)

        async def run(name: str, key: ApiKey | None, prompts: int, tokens: int) -> None:
            async with admission.admit_in_turn(key, prompts, tokens, slots=8):
                running.append(name)
                await asyncio.Event().wait()

        async with AsyncExitStack() as stack:
            tasks = {}
            for name, of_key, prompts, tokens in (
                ("a", key, 1, 1),
                ("b", key, 1, 1),  # waits for its key's limit, 2 - 1
                ("c", None, 3, 1),
                ("d", None, 8, 1),  # counts as 3, which are half of 7
                ("e", None, 1, 1),
            ):
                tasks[name] = asyncio.create_task(run(name, of_key, prompts, tokens))
                stack.callback(tasks[name].cancel)
                await asyncio.sleep(0)
            assert running == ["a", "c", "d"]
            with admission.admit(None, 1, 1):  # a client does not wait for its turn
                pass
            tasks["d"].cancel()
            await asyncio.sleep(0.01)
            assert running == ["a", "c", "d", "e"]
            tasks["a"].cancel()
            await asyncio.sleep(0.01)
            assert running == ["a", "c", "d", "e", "b"]

    asyncio.run(scenario())


def test_turns_end_with_the_gateway() -> None:
    async def scenario() -> None:
        admission = Admission(1000)
        async with admission.admit_in_turn(None, 8, 1, slots=8):
            second = admission.admit_in_turn(None, 1, 1, slots=8)
            waiting = asyncio.ensure_future(second.__aenter__())
            await asyncio.sleep(0)
            admission.close()
            for turn in (waiting, admission.admit_in_turn(None, 1, 1, slots=8).__aenter__()):
                with pytest.raises(HttpError, match="the gateway shuts down"):
                    await turn

    asyncio.run(scenario())
