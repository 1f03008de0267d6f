"""Files of OpenAI's API, by OpenAI's own library before a gateway in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.types import Message

from nemotron_core.errors import NemotronError
from nemotron_gateway.app import Gateway
from nemotron_gateway.settings import GatewaySettings, Timeouts
from tests.gateway.asgi import scope
from tests.gateway.process import Answer
from tests.gateway.stored import library, opened, upload

FORM = "multipart/form-data; boundary=b"


def form(*parts: tuple[str, str], end: str = "--b--\r\n") -> bytes:
    """Return a form of fields; the field `file` has a file's name."""
    text = ""
    for name, value in parts:
        filename = '; filename="in.jsonl"' if name == "file" else ""
        text += f'--b\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n{value}\r\n'
    return (text + end).encode()


async def post(
    gateway: Gateway,
    body: bytes,
    headers: dict[str, str] | None = None,
    piece: int = 7,
    *,
    is_whole: bool = True,
) -> Answer:
    """Send a form in small pieces."""
    sent: list[Any] = []
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)]

    async def receive() -> Message:
        if pieces:
            return {
                "type": "http.request",
                "body": pieces.pop(0),
                "more_body": bool(pieces) or not is_whole,
            }
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    request = scope("POST", "/v1/files")
    all_headers = {"content-type": FORM, "host": "localhost"} | (headers or {})
    request["headers"] = [(k.encode(), v.encode()) for k, v in all_headers.items()]
    await gateway(request, receive, send)
    return Answer(sent[0]["status"], {}, b"".join(part.get("body", b"") for part in sent[1:]))


def test_a_files_life(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            data = b'{"a": 1}\n' * 20_000 + b"\r\n--b\r\n\xff"
            file = await client.files.create(file=("möglich.jsonl", data), purpose="batch")
            assert (file.bytes, file.filename) == (len(data), "möglich.jsonl")
            assert (file.purpose, file.object, file.status) == ("batch", "file", "processed")
            assert (await client.files.content(file.id)).content == data
            assert await client.files.retrieve(file.id) == file
            assert (await client.files.list()).data == [file]
            deleted = await client.files.delete(file.id)
            assert (deleted.id, deleted.deleted) == (file.id, True)
            with pytest.raises(openai.NotFoundError, match="there is no file"):
                await client.files.retrieve(file.id)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / ".lock"]

    asyncio.run(scenario())


def test_lists_have_pages_and_survive_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            names = {await upload(client, [{"n": n}]) for n in range(5)}
        (tmp_path / "everybody" / "file-lost").write_text("a kill came before its description")
        (tmp_path / "everybody" / "file-x.partial").write_text("half an upload")
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            page = await client.files.list(limit=2)
            assert (len(page.data), page.has_more) == (2, True)
            assert {file.id async for file in client.files.list(limit=2)} == names
            newest = [file.id async for file in client.files.list()]
            oldest = [file.id async for file in client.files.list(order="asc")]
            assert oldest == newest[::-1]
            assert (await client.files.list(purpose="batch_output")).data == []
            for query, text in (({"limit": 0}, "limit is '0'"), ({"after": "x"}, "after is 'x'")):
                with pytest.raises(openai.BadRequestError, match=text):
                    await client.files.list(**query)  # type: ignore[arg-type]
        assert not list(tmp_path.rglob("file-lost")) + list(tmp_path.rglob("*.partial"))

    asyncio.run(scenario())


def test_a_key_sees_its_own_files_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, "anna", "admin otto") as gateway:
            anna, otto = library(gateway, "anna"), library(gateway, "otto")
            file_id = await upload(anna, [{}])
            assert (await otto.files.list()).data == []
            for ask in (otto.files.retrieve, otto.files.content, otto.files.delete):
                with pytest.raises(openai.NotFoundError):
                    await ask(file_id)
            with pytest.raises(openai.AuthenticationError):
                await library(gateway, "emil").files.list()
            assert (await anna.files.list()).data[0].id == file_id
        assert "anna" not in str(list(tmp_path.rglob("*")))

    asyncio.run(scenario())


def test_files_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as gateway:
            client = library(gateway)
            file = await client.files.create(
                file=("in.jsonl", b"{}\n"),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": 3600},
            )
            assert file.expires_at == file.created_at + 3600
            at = file.expires_at
            monkeypatch.setattr("nemotron_gateway.batches.store.now", lambda: at - 1)
            assert (await client.files.list()).data == [file]
            monkeypatch.setattr("nemotron_gateway.batches.store.now", lambda: at)
            assert (await client.files.list()).data == []

    asyncio.run(scenario())


def test_bounds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, file_bytes=100, key_bytes=250) as gateway:
            client = library(gateway)
            too_large = "the file has more than 100 bytes"
            with pytest.raises(openai.APIStatusError, match=too_large) as raised:
                await upload(client, ["x" * 200_000])  # as its Content-Length says
            assert raised.value.status_code == 413
            answer = await post(gateway, form(("file", "x" * 101), ("purpose", "batch")))
            assert (answer.status, answer.message[: len(too_large)]) == (413, too_large)
            await upload(client, ["x" * 99])
            file_id = await upload(client, ["x" * 99])
            with pytest.raises(openai.APIStatusError, match="have 200 bytes in 2 files") as raised:
                await upload(client, ["x"])
            assert raised.value.status_code == 413
            await client.files.delete(file_id)
            await upload(client, ["x"])
        assert not list(tmp_path.rglob("*.partial"))

    asyncio.run(scenario())


def test_forms_that_are_wrong(tmp_path: Path) -> None:
    good = ("purpose", "batch"), ("file", "{}")
    cases: list[tuple[bytes, dict[str, str], int, str]] = [
        (form(good[1]), {}, 400, "purpose is None"),
        (form(("purpose", "fine-tune"), good[1]), {}, 400, "purpose is 'fine-tune'"),
        (form(good[0]), {}, 400, "the form has no file"),
        (form(*good, good[1]), {}, 400, "the form has two files"),
        (form(good[0], ("file", "")), {}, 400, "the file is empty"),
        (form(*good, end=""), {}, 400, "the form ends before its last boundary"),
        (b"no form", {}, 400, "the form is wrong"),
        (form(*good, ("more", "x" * 70_000)), {}, 413, "the form has more than 65536 bytes"),
        (form(*good, ("expires_after[seconds]", "-1")), {}, 400, "expires_after[seconds] is '-1'"),
        (form(*good, ("expires_after[seconds]", "²")), {}, 400, "expires_after[seconds] is '²'"),
        (
            form(*good, ("expires_after[seconds]", "9" * 5000)),
            {},
            400,
            "expires_after[seconds] is '999",
        ),
        (b"{}", {"content-type": "application/json"}, 415, "send the file as multipart/form-data"),
        (form(*good), {"origin": "https://evil.example"}, 403, "pages of https://evil.example"),
    ]

    async def scenario() -> None:
        async with opened(tmp_path) as gateway:
            for body, headers, status, message in cases:
                answer = await post(gateway, body, headers=headers)
                assert (answer.status, answer.message[: len(message)]) == (status, message)
            assert (await library(gateway).files.list()).data == []
            answer = await post(gateway, form(*good), headers={"origin": "http://localhost"})
            assert answer.status == 200

    asyncio.run(scenario())


def test_a_form_that_stops_coming(tmp_path: Path) -> None:
    async def scenario() -> None:
        timeouts = Timeouts(body=0.05)
        gateway = Gateway(GatewaySettings(files={"folder": tmp_path}, timeouts=timeouts))
        await gateway.open()
        body = form(("purpose", "batch"), ("file", "{}"), end="")
        answer = await post(gateway, body, is_whole=False)
        assert (answer.status, answer.message) == (408, "nothing of the file has come for 0.05 s")
        await gateway.close()
        assert not list(tmp_path.rglob("file-*"))

    asyncio.run(scenario())


def test_off_without_a_folder() -> None:
    async def scenario() -> None:
        client = library(Gateway(GatewaySettings(access_log=False)))
        for ask in (client.files.list(), client.batches.list(), client.batches.cancel("b")):
            with pytest.raises(openai.NotFoundError, match=r"set files\.folder in its settings"):
                await ask

    asyncio.run(scenario())


def test_one_gateway_for_a_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path):
            with pytest.raises(NemotronError, match="another process is writing it"):
                async with opened(tmp_path):
                    pass

    asyncio.run(scenario())


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as gateway:
            file_id = await upload(library(gateway), [{}])
        path = tmp_path / "everybody" / f"{file_id}.json"
        path.write_text("{")
        with pytest.raises(NemotronError, match="not a description of a file") as raised:
            async with opened(tmp_path):
                pass
        assert raised.value.where == path

    asyncio.run(scenario())
