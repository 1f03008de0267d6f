"""Deadlines, sampling, readiness and a change of the engine, before a scripted Triton."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from nemotron_core.generation import Generation
from nemotron_gateway import backend
from nemotron_gateway.app import Gateway
from nemotron_gateway.backend import Backend
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.settings import GatewaySettings, Timeouts
from tests.gateway.asgi import Connection, scope
from tests.gateway.process import MODEL, Answer
from tests.gateway.scripted_triton import (
    CLOSE,
    HEARTBEAT,
    LAST,
    LONG,
    WORD,
    ScriptedTriton,
    Step,
    chunk,
    configuration,
    event,
    head,
    stream,
)


def complete(server: ScriptedTriton, **more: Any) -> Any:
    """Return a coroutine that sends a request through a gateway before the server."""

    async def run() -> Answer:
        settings = GatewaySettings(triton=server.address, timeouts=Timeouts(request=100))
        body = {"model": MODEL, "prompt": "Go"} | more
        connection = Connection(json.dumps(body).encode())
        await Gateway(settings)(
            scope("POST", "/v1/completions"), connection.receive, connection.send
        )
        return connection.answer()

    return run()


@pytest.mark.parametrize(
    ("more", "microseconds"),
    [({}, 100_000_000), ({"timeout": 2.5}, 2_500_000), ({"timeout": 1000}, 100_000_000)],
)
def test_the_least_deadline_counts(more: Any, microseconds: int) -> None:
    async def run() -> None:
        async with ScriptedTriton(stream(LAST), configuration=configuration()) as server:
            assert (await complete(server, **more)).status == 200
            assert server.requests[0][1]["timeout"] == microseconds

    asyncio.run(run())


@pytest.mark.parametrize("timeout", [0, -1, "5"])
def test_a_deadline_is_a_positive_number(timeout: Any) -> None:
    async def run() -> Answer:
        async with ScriptedTriton(stream(LAST), configuration=configuration()) as server:
            return await complete(server, timeout=timeout)

    answer = asyncio.run(run())
    assert (answer.status, answer.json["error"]["param"]) == (400, "timeout")


def test_a_deadline_that_the_client_set_is_a_504() -> None:
    async def run(script: Sequence[Step], **more: Any) -> Answer:
        async with ScriptedTriton(script, configuration=configuration()) as server:
            return await complete(server, timeout=0.2, **more)

    assert asyncio.run(run([LONG])).json["error"]["code"] == "timeout"
    streamed = asyncio.run(run([head(), chunk(WORD), LONG], stream=True))
    assert streamed.events()[-1]["error"]["code"] == "timeout"


@pytest.mark.parametrize(
    ("more", "sampling"),
    [
        ({}, {"temperature": 1.0, "top_p": 1.0}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 0.7}, {"temperature": 0.7, "top_p": 1.0}),
        ({"top_p": 0.3}, {"temperature": 1.0, "top_p": 0.3}),
        ({"seed": -1}, {"temperature": 1.0, "top_p": 1.0, "seed": 2**64 - 1}),
    ],
)
def test_sampling_as_openai_has_it(more: Any, sampling: dict[str, float]) -> None:
    """A request without a seed has none on the wire, where the server then draws a fresh one."""

    async def run() -> Any:
        async with ScriptedTriton(stream(LAST), configuration=configuration()) as server:
            await complete(server, **more)
            return server.requests[0][1]

    body = asyncio.run(run())
    names = ("temperature", "top_p", "top_k", "seed")
    assert {name: body[name] for name in names if name in body} == sampling


def test_a_whole_answer_is_read_from_a_stream() -> None:
    async def run() -> Any:
        async with ScriptedTriton(
            stream(HEARTBEAT, WORD, WORD, LAST), configuration=configuration()
        ) as server:
            answer = (await complete(server)).json
            assert server.requests[0][1]["stream"] is True
            return answer

    (choice,) = asyncio.run(run())["choices"]
    assert (choice["text"], choice["finish_reason"]) == (" word word", "length")


@pytest.mark.parametrize("is_lost", [True, False])
def test_another_engine_is_noticed(is_lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where Triton has closed a connection, otherwise before an engine could start."""
    if not is_lost:
        monkeypatch.setattr(backend, "OLD_FACTS_SECONDS", 0.0)

    async def run() -> list[str]:
        answer = stream(WORD, LAST)
        broken: list[Step] = [head(), chunk(WORD), CLOSE]
        scripts = (answer, broken, answer) if is_lost else (answer, answer)
        async with ScriptedTriton(*scripts, configuration=configuration("a" * 64)) as server:
            gateway = Gateway(GatewaySettings(triton=server.address))
            fingerprints = []
            for _ in scripts:
                connection = Connection(json.dumps({"prompt": "Go"}).encode())
                call = scope("POST", "/v1/completions")
                await gateway(call, connection.receive, connection.send)
                fingerprints.append(connection.answer().json.get("system_fingerprint"))
                server.configuration = configuration("b" * 64)
            return fingerprints

    first, *_, last = asyncio.run(run())
    assert (first, last) == ("fp_" + "a" * 16, "fp_" + "b" * 16)


READY_SETTINGS = {"timeouts": Timeouts(ready=0.2)}
OVERLOADED = stream(event(error="server overloaded: 64 wait"), status=400)


@pytest.mark.parametrize(
    ("script", "is_ready"),
    [
        (stream(WORD, LAST), True),
        (OVERLOADED, True),
        ([LONG], False),
        ([head(), chunk(HEARTBEAT), LONG], False),
        (stream(event(error="server unreachable: no engine"), status=400), False),
        ([CLOSE], False),
    ],
)
def test_readiness(script: Sequence[Step], is_ready: bool) -> None:
    async def run() -> bool:
        async with ScriptedTriton(script) as server:
            settings = GatewaySettings(triton=server.address, **READY_SETTINGS)
            gateway_backend = Backend(settings, Metrics())
            first, second = await asyncio.gather(
                gateway_backend.is_ready(), gateway_backend.is_ready()
            )
            assert first == second
            assert len(server.requests) == 1  # probes at the same time send one canary
            return first

    assert asyncio.run(run()) == is_ready


def test_a_busy_engine_is_ready() -> None:
    """The canary waits, but other answers go on: heartbeats are no sign of that, pieces are."""

    async def run(script: Sequence[Step]) -> bool:
        async with ScriptedTriton(script, [LONG]) as server:
            settings = GatewaySettings(triton=server.address, **READY_SETTINGS)
            gateway_backend = Backend(settings, Metrics())

            async def answer() -> None:
                async for _ in gateway_backend.generate("Go", Generation()):
                    pass

            task = asyncio.ensure_future(answer())
            while not server.requests:
                await asyncio.sleep(0.01)
            try:
                return await gateway_backend.is_ready()
            finally:
                task.cancel()

    assert asyncio.run(run([head(), 0.1, chunk(WORD), LONG]))
    assert not asyncio.run(run([head(), 0.1, chunk(HEARTBEAT), LONG]))


def test_readiness_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CANARY_SECONDS", 0.0)

    async def run() -> list[bool]:
        answer = stream(WORD, LAST)
        async with ScriptedTriton(answer, [CLOSE], [CLOSE], answer) as server:
            gateway_backend = Backend(GatewaySettings(triton=server.address), Metrics())
            return [await gateway_backend.is_ready() for _ in range(3)]

    assert asyncio.run(run()) == [True, False, True]
