"""A gateway inside the test's process, before an engine that the test scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from nemotron_core.generation import Generation, Piece, Prompt
from nemotron_core.reward import ModelKind
from nemotron_core.text import Tokenizer
from nemotron_gateway.app import Gateway
from nemotron_gateway.backend import Backend, ModelFacts
from nemotron_gateway.settings import GatewaySettings
from tests.gateway.process import MODEL, Answer

HEADERS = [(b"content-type", b"application/json")]


@dataclass
class ScriptedEngine:
    """Yields the pieces of its script, or raises what stands there instead of a piece.

    A number is a pause in seconds. An `asyncio.Event` in the script is set, and then nothing comes
    any more.
    """

    script: Sequence[Piece | Exception | asyncio.Event | float] = ()
    tokenizer: Tokenizer | None = None
    kind: ModelKind = "text"
    running: int = 0
    """Number of generations that have begun and not ended."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def facts(_backend: Backend) -> ModelFacts:
            return ModelFacts(4096, 8, self.tokenizer, {"engine": "0123456789abcdef0"}, self.kind)

        async def generate(
            _backend: Backend,
            _prompt: Prompt,
            _generation: Generation,
            _timeout: float | None = None,
        ) -> AsyncGenerator[Piece, None]:
            self.running += 1
            try:
                for step in self.script:
                    if isinstance(step, Exception):
                        raise step
                    if isinstance(step, float):
                        await asyncio.sleep(step)
                    elif isinstance(step, asyncio.Event):
                        step.set()
                        await asyncio.Event().wait()
                    else:
                        yield step
            finally:
                self.running -= 1

        monkeypatch.setattr(Backend, "generate", generate)
        monkeypatch.setattr(Backend, "facts", facts)


@dataclass
class Connection:
    """One request's side of the ASGI protocol. `disconnect` is set when the client hangs up."""

    body: bytes
    disconnect: asyncio.Event = field(default_factory=asyncio.Event)
    sent: list[Any] = field(default_factory=list)
    _body_was_read: bool = False

    async def receive(self) -> dict[str, Any]:
        if not self._body_was_read:
            self._body_was_read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.disconnect.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def answer(self) -> Answer:
        start, *parts = self.sent
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return Answer(start["status"], headers, b"".join(part["body"] for part in parts))


def scope(method: str, path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": HEADERS,
        "client": ("test", 1),
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }


def gateway() -> Gateway:
    return Gateway(GatewaySettings(default_max_tokens=8))


def ask(body: dict[str, Any], path: str = "/v1/completions", method: str = "POST") -> Answer:
    """The answer to one request."""
    connection = Connection(json.dumps(body).encode())
    asyncio.run(gateway()(scope(method, path), connection.receive, connection.send))
    return connection.answer()


def complete(**more: Any) -> Answer:
    return ask({"model": MODEL, "prompt": "Go"} | more)
