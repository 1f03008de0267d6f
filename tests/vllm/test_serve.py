"""`nemotron serve` on the vLLM lane, over two ranks and with a LoRA adapter.

A dead rank ends requests with an error, and is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tritonclient.utils import InferenceServerException

from nemotron_build.engine_folder import build_engine, open_engine
from nemotron_build.profile import Profile
from nemotron_serve.model_server import ModelServer, ServerOptions
from tests.gateway.process import running
from tests.peft_folder import write_adapter
from tests.serve.wire import Running, messages_json, stream, text
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.reference import load_hf_model
from tests.waiting import until

ADAPTER = "7"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def tp2_server(
    checkpoint_hf64: Path, vllm_profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("tp2")
    split = vllm_profile.split.model_copy(update={"tp": 2, "gpus_per_node": 2})
    profile = vllm_profile.model_copy(update={"split": split})
    build_engine(checkpoint_hf64, folder / "engine", profile)
    assert open_engine(folder / "engine").profile.split.tp == 2
    model = load_hf_model(checkpoint_hf64)
    adapter = write_adapter(folder / "adapter", model, PROJECTIONS, seed=1, scale=2)
    options = ServerOptions(log_file=folder / "server.log", adapters={ADAPTER: adapter})
    with ModelServer(folder / "engine", profile, options) as server:
        yield server


@pytest.fixture
def exact(answers: list[ExactAnswer]) -> ExactAnswer:
    return answers[0]


def fields_of(exact: ExactAnswer) -> dict[str, Any]:
    return {"messages": messages_json(exact.question.messages), "max_tokens": 200}


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_an_adapter_by_name(tp2_server: ModelServer, exact: ExactAnswer, model: str) -> None:
    fields = fields_of(exact)
    by_name = text(stream(tp2_server, model, lora_name=ADAPTER, **fields))
    assert by_name != exact.question.answer
    assert text(stream(tp2_server, model, lora_task_id=7, **fields)) == by_name
    assert text(stream(tp2_server, model, **fields)) == exact.question.answer
    with pytest.raises(InferenceServerException, match="there is no adapter '8'"):
        stream(tp2_server, model, lora_task_id=8, **fields)
    with pytest.raises(InferenceServerException, match="do not go together"):
        stream(tp2_server, model, lora_name=ADAPTER, lora_task_id=7, **fields)


def test_an_adapter_at_the_gateway(
    tp2_server: ModelServer, exact: ExactAnswer, tmp_path: Path
) -> None:
    endpoints = tp2_server.endpoints
    triton = f"{endpoints.address}:{endpoints.http}"
    body = {
        "messages": json.loads(messages_json(exact.question.messages)),
        "temperature": 0,
        "max_tokens": 200,
    }
    options = ("--engine-socket", str(tp2_server.engine_socket))
    with running(tmp_path, triton, *options) as gateway:
        listed = gateway.ask("GET", "/v1/models").json["data"]
        assert ADAPTER in [entry["id"] for entry in listed]
        path = "/v1/chat/completions"
        answers = [
            gateway.ask("POST", path, body | {"model": entry["id"]}).json["choices"][0]["message"]
            for entry in listed
        ]
    contents = {
        entry["id"]: answer["content"] for entry, answer in zip(listed, answers, strict=True)
    }
    changed = contents.pop(ADAPTER)
    assert changed == text(stream(tp2_server, lora_name=ADAPTER, **fields_of(exact)))
    assert set(contents.values()) == {exact.question.answer}


def test_a_killed_rank(tp2_server: ModelServer, exact: ExactAnswer) -> None:
    server, fields = tp2_server, fields_of(exact)
    assert text(stream(server, **fields)) == exact.question.answer
    changed = text(stream(server, lora_name=ADAPTER, **fields))
    endless = {**fields, "max_tokens": 3000, "end_id": -1, "stream": True}
    with Running(server, "tensorrt_llm_bls", **endless) as request:
        request.begin()
        engine = psutil.Process(server.engine.hello.pid)
        ranks = [child for child in engine.children() if "Worker" in child.name()]
        assert len(ranks) == 2
        ranks[1].kill()
        until(lambda: request.error is not None)
        assert "the engine has ended" in str(request.error)
    until(lambda: not any(process.is_running() for process in (engine, *ranks)))
    until(lambda: not server.is_working)

    def answers_again() -> bool:
        try:
            return text(stream(server, **fields)) == exact.question.answer
        except InferenceServerException:
            return False

    until(answers_again, poll_seconds=0.5)
    assert server.engine.hello.pid != engine.pid
    assert text(stream(server, lora_name=ADAPTER, **fields)) == changed  # it is loaded again
