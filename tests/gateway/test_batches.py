"""Batches of OpenAI's API, by OpenAI's own library before a gateway in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.gateway.stored import (
    CHAT,
    EchoEngine,
    begin,
    content,
    ended,
    library,
    line,
    opened,
    read,
    run,
    texts,
    until,
    upload,
)

ROWS = [line(f"r{number}") for number in range(60)]
ECHOES = {f"r{number}": f"echo r{number}" for number in range(60)}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> EchoEngine:
    engine = EchoEngine()
    engine.install(monkeypatch)
    return engine


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def codes(batch: Batch) -> list[tuple[str | None, int | None]]:
    assert batch.errors and batch.errors.data
    return [(error.code, error.line) for error in batch.errors.data]


def test_a_batch(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            batch = await begin(client, ROWS, metadata={"of": "me"})
            assert (batch.status, batch.object) == ("validating", "batch")
            assert batch.expires_at == batch.created_at + 24 * 3600
            batch = await ended(client, batch)
            assert (batch.status, counts(batch)) == ("completed", (60, 60, 0))
            assert batch.metadata == {"of": "me"}
            assert await texts(client, batch) == ECHOES
            (first, *_) = (await read(client, batch.output_file_id)).values()
            assert first.keys() == {"id", "custom_id", "response", "error"}
            assert first["response"].keys() == {"status_code", "request_id", "body"}
            assert (first["response"]["status_code"], first["error"]) == (200, None)
            assert first["response"]["body"]["object"] == "chat.completion"
            assert batch.output_file_id and batch.error_file_id is None
            output = await client.files.retrieve(batch.output_file_id)
            assert (output.purpose, output.filename) == (
                "batch_output",
                f"{batch.id}_output.jsonl",
            )
            assert (await client.batches.list()).data == [batch]
            assert batch.in_progress_at and batch.finalizing_at and batch.completed_at
        assert sorted(engine.asked) == sorted(ECHOES)
        assert not (tmp_path / "everybody" / batch.id).exists()

    asyncio.run(scenario())


def test_errors_have_their_responses(
    engine: EchoEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemotron_data.batch.run.FIRST_DELAY", 0.01)
    lines: list[Any] = [
        line("good"),
        line("refused", "refuse"),
        line("broken", "break"),
        line("no prompt", body={"model": "nemotron-4-340b-instruct"}),
        line(
            "other model", body={"model": "other", "messages": [{"role": "user", "content": "a"}]}
        ),
        line("streamed", body={"messages": [{"role": "user", "content": "a"}], "stream": True}),
    ]

    async def scenario() -> None:
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            batch = await run(client, lines)
            assert (batch.status, counts(batch)) == ("completed", (6, 1, 5))
            assert await texts(client, batch) == {"good": "echo good"}
            errors = await read(client, batch.error_file_id)
            assert all(entry["error"] is None for entry in errors.values())
            responses = {name: entry["response"] for name, entry in errors.items()}
            assert {name: response["status_code"] for name, response in responses.items()} == {
                "refused": 400,
                "broken": 500,
                "no prompt": 400,
                "other model": 404,
                "streamed": 400,
            }
            assert responses["refused"]["body"]["error"] == {
                "message": "this is refused",
                "type": "invalid_request_error",
                "param": "messages",
                "code": None,
            }
            assert responses["other model"]["body"]["error"]["code"] == "model_not_found"
        assert engine.asked.count("break") == 5

    asyncio.run(scenario())


def test_an_input_that_is_wrong(engine: EchoEngine, tmp_path: Path) -> None:
    lines = [
        line("a"),
        "",
        line("a"),
        "{",
        "[1]",
        line("b", url="/v1/completions"),
        line("c", method="GET"),
        {"custom_id": 7} | {k: v for k, v in line("x").items() if k != "custom_id"},
        line("d", body="text"),
    ]

    async def scenario() -> None:
        async with opened(tmp_path, requests=9) as gateway:
            client = library(gateway)
            batch = await run(client, lines)
            assert batch.status == "failed" and batch.failed_at
            assert codes(batch) == [
                ("duplicate_custom_id", 3),
                ("invalid_json_line", 4),
                ("invalid_json_line", 5),
                ("mismatched_endpoint", 6),
                ("invalid_method", 7),
                ("invalid_custom_id", 8),
                ("missing_body", 9),
            ]
            assert codes(await run(client, ["", " "])) == [("empty_file", None)]
            many = await run(client, [line(str(number)) for number in range(10)])
            assert codes(many) == [("too_many_requests", None)]
        assert engine.asked == []

    asyncio.run(scenario())


def test_a_batch_that_is_wrong_as_a_whole_ends_early(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            batch = await run(client, [line(str(number), "refuse") for number in range(100)])
            assert (batch.status, counts(batch)) == ("failed", (100, 0, 20))
            assert batch.errors and batch.errors.data
            message = batch.errors.data[0].message
            assert message and "the first 20 rows were all refused: this is refused" in message
            assert len(await read(client, batch.error_file_id)) == 20

    asyncio.run(scenario())


def test_completions(engine: EchoEngine, tmp_path: Path) -> None:
    path = "/v1/completions"

    async def scenario() -> None:
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            batch = await run(client, [line("a", url=path, body={"prompt": "b"})], endpoint=path)
            (result,) = (await read(client, batch.output_file_id)).values()
            assert result["response"]["body"]["choices"][0]["text"] == "echo b"

    asyncio.run(scenario())


def test_requests_that_are_wrong(engine: EchoEngine, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"endpoint": "/v1/embeddings"}, "endpoint is '/v1/embeddings'"),
        ({"completion_window": "soon"}, "completion_window is 'soon'"),
        ({"completion_window": "99d"}, "completion_window is '99d'"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata has at most 16"),
    ]

    async def scenario() -> None:
        async with opened(tmp_path, "anna", "otto") as gateway:
            client = library(gateway, "anna")
            for more, message in cases:
                with pytest.raises(openai.BadRequestError, match=message):
                    await begin(client, [line("a")], **more)
            for unknown in ("file-none", await upload(library(gateway, "otto"), [line("a")])):
                with pytest.raises(openai.NotFoundError, match="there is no file"):
                    await client.batches.create(
                        input_file_id=unknown, endpoint=CHAT, completion_window="24h"
                    )
            batch = await begin(client, [line("a")])
            with pytest.raises(openai.NotFoundError, match="there is no batch"):
                await library(gateway, "otto").batches.retrieve(batch.id)
            with pytest.raises(openai.NotFoundError, match="there is no batch"):
                await library(gateway, "otto").batches.cancel(batch.id)
            assert (await library(gateway, "otto").batches.list()).data == []
            await ended(client, batch)

    asyncio.run(scenario())


def test_a_batch_is_cancelled(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        engine.held = asyncio.Event()
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            batch = await begin(client, ROWS)
            await until(lambda: engine.running == 7)
            batch = await client.batches.cancel(batch.id)
            assert batch.status == "cancelling" and batch.cancelling_at
            engine.held.set()
            batch = await ended(client, batch)
            assert batch.status == "cancelled" and batch.cancelled_at
            found = await texts(client, batch)
            assert 7 <= len(found) < 60
            assert counts(batch) == (60, len(found), 0)
            assert (await client.batches.cancel(batch.id)).status == "cancelled"

    asyncio.run(scenario())


def test_a_batch_that_waits_is_cancelled(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        engine.held = asyncio.Event()
        async with opened(tmp_path, batches=1, key_batches=2) as gateway:
            client = library(gateway)
            first, second = await begin(client, ROWS), await begin(client, ROWS)
            with pytest.raises(openai.RateLimitError, match="2 batches of this key have not ended"):
                await begin(client, ROWS)
            assert (await ended(client, await client.batches.cancel(second.id))).id == second.id
            third = await begin(client, ROWS)
            engine.held.set()
            for batch in (first, third):
                assert await texts(client, await ended(client, batch)) == ECHOES
        assert sorted(engine.asked) == sorted([*ECHOES] * 2)

    asyncio.run(scenario())


def test_what_is_not_answered_in_time(
    engine: EchoEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        engine.held = asyncio.Event()
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            batch = await begin(client, ROWS)
            await until(lambda: engine.running == 7)
            scheduler = gateway._scheduler
            assert scheduler is not None
            scheduler._expire(scheduler._executions[batch.id])
            engine.held.set()
            batch = await ended(client, batch)
            assert batch.status == "expired" and batch.expired_at
            found, errors = await texts(client, batch), await read(client, batch.error_file_id)
            assert found.keys() | errors.keys() == ECHOES.keys()
            assert not found.keys() & errors.keys()
            assert counts(batch) == (60, len(found), len(errors))
            assert {entry["error"]["code"] for entry in errors.values()} == {"batch_expired"}
            assert {entry["response"] for entry in errors.values()} == {None}

    asyncio.run(scenario())


def test_the_input_may_be_deleted_meanwhile(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        engine.held = asyncio.Event()
        async with opened(tmp_path, key_bytes=(1 << 20), file_bytes=(1 << 20) - 100) as gateway:
            client = library(gateway)
            batch = await begin(client, ROWS)
            await client.files.delete(batch.input_file_id)
            with pytest.raises(
                openai.APIStatusError, match=f"{len(content(ROWS))} bytes in 0 files"
            ):
                await upload(client, ["x" * ((1 << 20) - 200)])
            engine.held.set()
            assert await texts(client, await ended(client, batch)) == ECHOES

    asyncio.run(scenario())


def test_a_key_that_is_taken_back(engine: EchoEngine, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("anna\notto\n")

    async def scenario() -> None:
        engine.held = asyncio.Event()
        async with opened(tmp_path / "files", keys_file=keys) as gateway:
            batch = await begin(library(gateway, "anna"), ROWS)
            await until(lambda: engine.running)
            keys.write_text("anne\notto\n")
            gateway._keys._next_look = 0
            engine.held.set()
            store = gateway._scheduler.store  # type: ignore[union-attr]
            owner = next(path.name for path in (tmp_path / "files").iterdir() if path.is_dir())
            await until(lambda: store.of(owner).stored(batch.id).batch.is_final)
            errors = store.of(owner).stored(batch.id).batch.errors
            assert errors and "the API key is no longer valid" in errors.data[0].message

    asyncio.run(scenario())


def test_output_files_expire(engine: EchoEngine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            lines = [line("a"), line("b", "refuse")]
            keep: Any = {"anchor": "created_at", "seconds": 7200}
            batch = await run(client, lines, output_expires_after=keep)
            for file_id in (batch.output_file_id, batch.error_file_id):
                assert file_id
                file = await client.files.retrieve(file_id)
                assert file.expires_at == file.created_at + 7200

    asyncio.run(scenario())
