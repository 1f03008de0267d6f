"""LoRA adapters at the gateway, before the process of an engine that has them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.generation import Generation, Piece, Prompt
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_gateway.app import Gateway
from nemotron_gateway.backend import Backend
from nemotron_gateway.keys import Keys
from nemotron_gateway.settings import GatewaySettings
from tests.engine.process import LORA, engine_process
from tests.gateway.asgi import HEADERS, Connection, ScriptedEngine, scope
from tests.gateway.process import MODEL, Answer

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("engine")
    folder.chmod(0o700)
    (folder / TOKENIZER_NAME).write_bytes(b"a tokenizer")
    with engine_process(folder, LORA, "--lora", f"polite={folder}") as (_, path):
        yield path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Generation]:
    """The generations that reach the engine."""
    generations: list[Generation] = []
    ScriptedEngine().install(monkeypatch)

    async def generate(
        _backend: Backend, _prompt: Prompt, generation: Generation, _timeout: float | None = None
    ) -> AsyncGenerator[Piece, None]:
        generations.append(generation)
        yield Piece("ok", token_ids=(7,), finish_reason="stop")

    monkeypatch.setattr(Backend, "generate", generate)
    return generations


class Client:
    """One gateway with two keys, `u` of a user and `a` of an admin."""

    def __init__(self, socket: Path | None) -> None:
        settings = GatewaySettings(engine_socket=socket, default_max_tokens=8)
        self._gateway = Gateway(settings, Keys(["user u", "admin a"]))

    def ask(
        self, path: str, body: dict[str, Any] | None = None, *, key: str = "u", method: str = "POST"
    ) -> Answer:
        connection = Connection(json.dumps(body or {}).encode())
        request = scope(method, path)
        request["headers"] = [*HEADERS, (b"authorization", f"Bearer {key}".encode())]
        asyncio.run(self._gateway(request, connection.receive, connection.send))
        return connection.answer()

    def models(self) -> dict[str, str | None]:
        content = self.ask("/v1/models", method="GET").json
        return {entry["id"]: entry["parent"] for entry in content["data"]}


def test_an_adapter_is_a_model(socket: Path, asked: list[Generation]) -> None:
    client = Client(socket)
    assert client.models()["polite"] == MODEL
    for path, prompt in (
        ("/v1/completions", {"prompt": "Go"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Go"}]}),
        ("/v1/responses", {"input": "Go"}),
    ):
        answer = client.ask(path, {"model": "polite", "max_output_tokens": 4} | prompt)
        assert answer.status == 200, answer.text
        assert answer.json["model"] == "polite"
        assert client.ask(path, {"model": MODEL} | prompt).status == 200
    assert [generation.lora_name for generation in asked] == ["polite", None] * 3
    answer = client.ask("/v1/completions", {"model": "rude", "prompt": "Go"})
    assert answer.status == 404
    assert "'rude'" in answer.message
    assert "'polite'" in answer.message


@pytest.mark.usefixtures("asked")
def test_admins_load_and_unload(socket: Path) -> None:
    client = Client(socket)
    body = {"lora_name": "brief", "lora_path": "/adapters/brief"}
    assert client.ask(LOAD, body).status == 403
    assert client.ask(LOAD, body, key="wrong").status == 401
    assert "brief" not in client.models()
    assert client.ask(LOAD, body, key="a").json == {"adapters": ["polite", "brief"]}
    assert client.models()["brief"] == MODEL
    refused = client.ask(LOAD, body, key="a")
    assert (refused.status, "is loaded already" in refused.message) == (400, True)
    missing = client.ask(LOAD, {"lora_name": "x", "lora_path": "/missing"}, key="a")
    assert (missing.status, "there is no adapter" in missing.message) == (400, True)
    itself = client.ask(LOAD, {"lora_name": MODEL, "lora_path": "/adapters"}, key="a")
    assert "is the model itself" in itself.message
    assert client.ask(UNLOAD, {"lora_name": "brief"}, key="a").status == 200
    assert "brief" not in client.models()
    assert client.ask(UNLOAD, {"lora_name": "brief"}, key="a").status == 400


@pytest.mark.usefixtures("asked")
def test_without_an_engine_there_are_no_adapters(tmp_path: Path) -> None:
    body = {"lora_name": "brief", "lora_path": "/adapters/brief"}
    alone = Client(None)
    assert "polite" not in alone.models()
    refused = alone.ask(LOAD, body, key="a")
    assert (refused.status, "no engine's socket" in refused.message) == (501, True)
    gone = Client(tmp_path / "gone.sock")
    assert "polite" not in gone.models()
    assert gone.ask(LOAD, body, key="a").status == 503
