"""A gateway as users start it, and plain HTTP requests to it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import WAIT, until

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
MODEL = "nemotron-4-340b-instruct"


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, Any]]:
        """Return the access log so far."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def metric(self, name: str) -> float:
        """Return the value of the metric with that name and those labels."""
        lines = self.ask("GET", "/metrics").text.splitlines()
        (value,) = (line.split()[-1] for line in lines if line.rsplit(" ", 1)[0] == name)
        return float(value)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request and return its answer. The body is sent as JSON unless it is bytes."""
        sent = {"Content-Type": "application/json"} | (headers or {})
        data = body if isinstance(body, bytes) or body is None else json.dumps(body)
        connection = self.connect()
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def chat(self, question: str, **more: Any) -> Answer:
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
        return self.ask("POST", "/v1/chat/completions", body | {"temperature": 0} | more)

    def complete(self, prompt: Any, **more: Any) -> Answer:
        body = {"model": MODEL, "prompt": prompt, "temperature": 0}
        return self.ask("POST", "/v1/completions", body | more)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def message(self) -> str:
        """The message of an error, which must be in OpenAI's form."""
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return str(self.json["error"]["message"])

    def events(self) -> list[Any]:
        """Return the events of a stream, which must end with `[DONE]`."""
        assert self.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in self.text.split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@contextmanager
def running(
    folder: Path, triton: str, *options: str, environment: dict[str, str] | None = None
) -> Iterator[Running]:
    """Start a gateway on a free port, and kill it at the end."""
    port_file, log = folder / "port.json", folder / "gateway.log"
    command = [NEMOTRON, "gateway", "--triton", triton, "--port", "0"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--port-file", str(port_file), *options],
            stderr=file,
            env=os.environ | (environment or {}),
        )
    try:
        until(lambda: port_file.exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Running(process, json.loads(port_file.read_text())["gateway"], log)
    finally:
        process.kill()
        process.wait()
