"""`nemotron serve --engine-socket`: an engine's process that others have started.

The engines here compute nothing, so that they do what the tiny model cannot be made to do: refuse
one of a request's sequences, take seconds for a step, have another tokenizer.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nemotron_client import Client, Generation
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_engine.protocol import Chunk, Request
from nemotron_serve.model_server import ModelServer
from tests.engine.fake_adapter import STEP_SECONDS, FakeAdapter
from tests.engine.process import FAKE, Connection, engine_process
from tests.gateway.process import Running, running
from tests.serve.relay import Relay
from tests.serve.test_serve import NEMOTRON, serving
from tests.waiting import WAIT, until

PROMPT = "<extra_id_1>Count"
TOKEN = 100
SLOW = 0.5
"""Seconds of a step."""


class ConstantAdapter(FakeAdapter):
    """Generates one token for ever. It refuses every sequence of a request but the first.

    Sequences of a request differ in their seeds.
    """

    def ask(self, request: Request) -> None:
        if request.seed == 1:
            raise NemotronError("the library refuses")
        super().ask(request)

    def collect(self) -> list[Chunk]:
        chunks = super().collect()
        for chunk in chunks:
            chunk.token_ids = [TOKEN] * len(chunk.token_ids)
        return chunks


CONSTANT = f"{__name__}:{ConstantAdapter.__name__}"


@dataclass
class Served:
    ports: dict[str, int]
    engine: Path
    """Socket of the engine."""

    def ask(self, path: str, **body: object) -> str:
        """Return what the model answers over HTTP."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["http"], timeout=WAIT)
        try:
            connection.request("POST", f"/v2/models/{path}", json.dumps(body))
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def running(self) -> int:
        with Connection(self.engine) as connection:
            return connection.load().running


@pytest.fixture(scope="module")
def served(engine_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve, with another engine folder than the shared server's."""
    folder = tmp_path_factory.mktemp("other-engine")
    path = folder / "engine.sock"
    with (
        engine_process(engine_f32, CONSTANT, path=path, **{STEP_SECONDS: "0.02"}),
        serving(engine_f32, folder, f"--engine-socket={path}") as (_process, ports),
    ):
        yield Served(ports, path)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize(("verb", "stream"), [("generate", False), ("generate_stream", True)])
def test_the_other_sequences_end_when_one_fails(
    model: str, verb: str, stream: bool, served: Served
) -> None:
    text = served.ask(
        f"{model}/{verb}",
        text_input=PROMPT,
        max_tokens=1_000_000,
        end_id=-1,
        num_return_sequences=3,
        top_p=1.0,
        random_seed=0,
        stream=stream,
    )
    assert "the library refuses" in text
    until(lambda: not served.running())


def test_a_gateway_names_the_engine_that_answers(
    served: Served, server: ModelServer, tmp_path: Path
) -> None:
    """Also after another Triton with another engine has taken the place of the first one."""

    def names(gateway: Running) -> tuple[str, str]:
        """Return how an answer names the engine, and how the list of models does."""
        answer = gateway.complete(PROMPT, max_tokens=1).json
        (model, _alias) = gateway.ask("GET", "/v1/models").json["data"]
        return answer["system_fingerprint"], f"fp_{model['engine'][:16]}"

    with Relay(server.endpoints.http) as relay, running(tmp_path, relay.address) as gateway:
        first = names(gateway)
        relay.switch(served.ports["http"])
        second = names(gateway)
        relay.switch(server.endpoints.http)
        third = names(gateway)
    assert first[0] == first[1] != second[0] == second[1]
    assert third == first


def test_a_drain_waits_for_steps_that_take_long(engine_bf16: Path, tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    with (
        engine_process(engine_bf16, CONSTANT, path=path, **{STEP_SECONDS: str(SLOW)}) as (
            engine,
            _,
        ),
        serving(engine_bf16, tmp_path, f"--engine-socket={path}") as (process, ports),
        Client(f"127.0.0.1:{ports['grpc']}") as client,
    ):
        pieces = client.stream_complete(PROMPT, Generation(max_tokens=4, end_id=0))
        next(pieces)
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert list(pieces)[-1].finish_reason == "length"
        assert time.monotonic() - start >= SLOW
        assert process.wait(WAIT) == 0
        assert engine.poll() is None  # who has started it ends it


def test_another_tokenizer_is_refused(engine_bf16: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / TOKENIZER_NAME).write_bytes(b"of another model")
    path = tmp_path / "engine.sock"
    with engine_process(other, FAKE, path=path):
        done = subprocess.run(
            [NEMOTRON, "serve", str(engine_bf16), f"--engine-socket={path}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT,
        )
    assert done.returncode == 1
    assert "the engine's tokenizer is another one" in done.stderr
    assert str(path) in done.stderr or TOKENIZER_NAME in done.stderr
