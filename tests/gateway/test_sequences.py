"""Many answers of one request: how many the engine gets at once, and what happens if it is full."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import openai
import pytest

from nemotron_core.errors import ErrorKind
from nemotron_core.generation import MAX_SEED, Generation, Piece, Prompt
from nemotron_core.openai.errors import HttpError
from nemotron_core.text import Tokenizer
from nemotron_gateway.admission import Admission
from nemotron_gateway.app import Gateway
from nemotron_gateway.keys import ApiKey
from nemotron_gateway.sequences import generate_groups, groups_of
from nemotron_gateway.settings import GatewaySettings, Limits
from tests.gateway.asgi import Connection, ScriptedEngine, gateway, scope
from tests.gateway.process import MODEL
from tests.waiting import WAIT

GO = "<extra_id_1>Go"
FULL = HttpError.of_kind(ErrorKind.OVERLOADED, "full")


def test_groups() -> None:
    generation = Generation(num_return_sequences=5, seed=MAX_SEED)
    groups = list(groups_of(["a", "b"], generation, 2))
    assert [(g.prompt, g.first, g.offset, g.count) for g in groups] == [
        *(("a", 0, 0, 2), ("a", 2, 2, 2), ("a", 4, 4, 1)),
        *(("b", 5, 0, 2), ("b", 7, 2, 2), ("b", 9, 4, 1)),
    ]
    assert [g.generation.seed for g in groups[:3]] == [MAX_SEED, 1, 3]
    assert [g.generation.num_return_sequences for g in groups[:3]] == [2, 2, None]
    (group,) = groups_of(["a"], Generation(), 8)
    assert group.generation == Generation()


class Engine:
    """Generates one token for each sequence, when it has been let go on."""

    def __init__(self, failures: Sequence[HttpError | None] = ()) -> None:
        self.failures = list(failures)
        self.running = self.most = self.asked = 0

    async def generate(
        self, _prompt: Prompt, generation: Generation
    ) -> AsyncGenerator[Piece, None]:
        self.asked += 1
        if self.failures and (failure := self.failures.pop(0)):
            raise failure
        count = generation.num_return_sequences or 1
        self.running += count
        self.most = max(self.most, self.running)
        try:
            for index in range(count):
                await asyncio.sleep(0)
                yield Piece(str(generation.seed), finish_reason="stop", sequence_index=index)
        finally:
            self.running -= count


def run(engine: Engine, prompts: Sequence[str], slots: int, **fields: Any) -> dict[int, Piece]:
    async def collect() -> dict[int, Piece]:
        groups = list(groups_of(prompts, Generation(**fields), slots))
        source = generate_groups(groups, slots, engine.generate)
        return {index: piece async for index, piece in source}

    return asyncio.run(collect())


def test_no_more_than_the_slots_at_once() -> None:
    engine = Engine()
    pieces = run(engine, ["a"] * 10, 3, seed=5, num_return_sequences=4)
    assert sorted(pieces) == list(range(40))
    assert engine.most == 3
    assert [pieces[i].text for i in range(8)] == ["5", "5", "5", "8"] * 2
    assert [pieces[i].sequence_index for i in range(8)] == [0, 1, 2, 3] * 2


def test_a_full_queue_makes_only_a_request_wait_that_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nemotron_gateway.sequences.PATIENCE_SECONDS", 0.001)
    engine = Engine([None, FULL, FULL, FULL])
    assert len(run(engine, ["a"] * 3, 1)) == 3
    assert engine.asked == 6
    with pytest.raises(HttpError) as raised:
        run(Engine([FULL]), ["a"] * 3, 1)
    assert raised.value is FULL
    with pytest.raises(HttpError, match="broken"):
        run(Engine([None, HttpError(500, "broken")]), ["a"] * 3, 1)


def test_a_request_that_ends_frees_every_seat() -> None:
    async def cancel() -> int:
        engine = Engine()
        groups = list(groups_of(["a"] * 9, Generation(num_return_sequences=2), 4))
        source = generate_groups(groups, 4, engine.generate)
        await anext(source)
        await source.aclose()
        return engine.running

    assert asyncio.run(cancel()) == 0


def test_a_disconnect_frees_also_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten prompts the engine has eight; none is left when the client is gone."""

    async def hang_up() -> tuple[int, int]:
        silent = asyncio.Event()
        engine = ScriptedEngine([silent])
        engine.install(monkeypatch)
        body = {"prompt": ["Go"] * 10, "stream": True}
        connection = Connection(json.dumps(body).encode())
        call = scope("POST", "/v1/completions")
        request = asyncio.ensure_future(gateway()(call, connection.receive, connection.send))
        await silent.wait()
        running = engine.running
        connection.disconnect.set()
        await asyncio.wait_for(request, WAIT)
        return running, engine.running

    assert asyncio.run(hang_up()) == (8, 0)


DOORS: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/completions"): {"prompt": "Go", "max_tokens": 60},
    ("POST", "/v1/chat/completions"): {
        "messages": [{"role": "user", "content": "Go"}],
        "max_tokens": 60,
    },
    ("POST", "/v1/responses"): {"input": "Go", "max_output_tokens": 60},
    ("PUT", "/generate"): {"sentences": ["Go"], "tokens_to_generate": 60},
}
"""Requests for about sixty tokens."""


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_the_limit_of_tokens_holds_at_every_door(
    method: str, path: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = asyncio.Event()
    ScriptedEngine([silent], tokenizer).install(monkeypatch)
    served = Gateway(GatewaySettings(limits=Limits(tokens=100)))

    def ask(method: str, path: str) -> tuple[Connection, asyncio.Task[None]]:
        connection = Connection(json.dumps(DOORS[method, path]).encode())
        call = served(scope(method, path), connection.receive, connection.send)
        return connection, asyncio.ensure_future(call)

    async def run() -> None:
        for first in DOORS:
            silent.clear()
            running, task = ask(*first)
            await silent.wait()
            refused, refusal = ask(method, path)
            await asyncio.wait_for(refusal, WAIT)
            answer = refused.answer()
            assert (answer.status, answer.headers["retry-after"]) == (429, "1"), first
            assert "running requests need 6" in answer.text
            running.disconnect.set()
            await asyncio.wait_for(task, WAIT)
        silent.clear()
        again, task = ask(method, path)
        await silent.wait()  # what has ended counts no more
        again.disconnect.set()
        await asyncio.wait_for(task, WAIT)

    asyncio.run(run())


def test_more_sequences_than_the_engine_and_its_queue_hold(client: openai.OpenAI) -> None:
    """The shared server has 64 slots and a queue of 448."""
    settings: Any = {"model": MODEL, "n": 8, "max_tokens": 1, "temperature": 1, "seed": 3}
    choices = client.completions.create(prompt=[GO] * 80, **settings).choices
    assert [choice.index for choice in choices] == list(range(640))
    texts = [choice.text for choice in choices]
    together = client.completions.create(prompt=GO, **settings).choices
    assert texts == [choice.text for choice in together] * 80


def test_limits_of_tokens_and_of_keys() -> None:
    admission = Admission(100)
    key = ApiKey(b"a", requests=2, tokens=50)
    with (  # alone it may be as large as it is
        admission.admit(None, 1, 1000),
        pytest.raises(HttpError, match="running requests need 1000 tokens"),
    ):
        admission.admit(None, 1, 1).__enter__()
    with admission.admit(key, 2, 40):
        with pytest.raises(HttpError, match="this key may have 2 prompts") as raised:
            admission.admit(key, 1, 1).__enter__()
        assert raised.value.status == 429
        with admission.admit(ApiKey(b"b"), 1, 60):
            pass
    with pytest.raises(HttpError, match="this key may have 50 tokens"):
        admission.admit(key, 1, 51).__enter__()
    with admission.admit(key, 2, 50):
        pass
