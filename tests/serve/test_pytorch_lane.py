"""The PyTorch lane: its build, and all of it on a real Triton.

A stand-in for TensorRT-LLM's `LLM` runs the CPU engine; the GPUs are stand-ins too.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_build.engine_folder import build_engine, open_engine
from nemotron_build.profile import load_profile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.errors import NemotronError
from tests.serve.test_tensorrt_lane import built, container_environment, served
from tests.serve.wire import MODELS, last, messages_json, stream, text
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.nemo_file import NEMO

PROFILE = "h200-bf16-tp8-pytorch"
ENGINE_NAME = "NEMOTRON_STANDIN_ENGINE"
"""File with the folder of the engine that the stand-in runs."""


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "checkpoint"
    convert(NEMO, folder, Options(Parallel(1, 1), format=Format.HF))
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return container_environment(tmp_path_factory.mktemp("container"), "1.3.0")


@pytest.fixture(scope="module")
def engine(hf: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("engine"), environment, hf, PROFILE)


def test_the_engine_is_the_checkpoint_under_a_second_name(engine: Path, hf: Path) -> None:
    assert open_engine(engine).versions == {}  # any version that fits the lane serves it
    assert (engine / "model.safetensors").stat().st_ino == (hf / "model.safetensors").stat().st_ino
    settings = json.loads((engine / "pytorch_engine.json").read_text())
    assert (settings["tp"], settings["pp"], settings["max_seq_len"]) == (8, 1, 4096)
    assert settings["stream_interval"] == 1


def test_a_checkpoint_of_another_kind(hf: Path, checkpoint_tp8: Path, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"format trtllm.*convert with --format hf"):
        build_engine(checkpoint_tp8, tmp_path / "engine", load_profile(PROFILE))
    fp8 = load_profile("h100-fp8-tp8-pytorch")
    with pytest.raises(NemotronError, match="has dtype bf16, the profile fp8"):
        build_engine(hf, tmp_path / "engine", fp8)


def test_the_lane_answers(
    engine: Path,
    environment: dict[str, str],
    engine_bf16: Path,
    tmp_path: Path,
    answers: list[ExactAnswer],
) -> None:
    (engine / ENGINE_NAME).write_text(str(engine_bf16))
    longest = max(answers, key=lambda exact: len(exact.question.answer))
    stop = longest.question.answer[20:26]
    with served(engine, environment, tmp_path) as lane:
        for model in MODELS:
            for exact in answers[::60]:
                prompt = messages_json(exact.question.messages)
                responses = stream(lane, model, messages=prompt, max_tokens=200, stream=True)
                assert text(responses) == exact.question.answer
                assert last(responses, "finish_reason") == "stop"
        prompt = messages_json(longest.question.messages)
        responses = stream(lane, messages=prompt, max_tokens=200, stop_words=stop)
        assert text(responses) == longest.question.answer[:20]
