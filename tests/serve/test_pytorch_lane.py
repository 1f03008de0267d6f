"""The PyTorch lane: its build, its engine, and all of it on a real Triton.

A stand-in for TensorRT-LLM's `LLM` runs the CPU engine; the GPUs are stand-ins too.
"""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tritonclient.utils import InferenceServerException

from nemotron_build.engine_folder import build_engine, open_engine
from nemotron_build.lanes.pytorch import LAUNCHED, PyTorchLane
from nemotron_build.profile import Profile, PyTorchProfile, load_profile, profiles_folder
from nemotron_client import Client, Generation
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.errors import NemotronError
from nemotron_core.metrics import GENERATED_TOKENS_METRIC, RUNNING_METRIC
from nemotron_core.text import Tokenizer
from nemotron_engine.request import (
    EngineBroken,
    GenerationChunk,
    GenerationRequest,
    Overloaded,
    TimedOut,
)
from nemotron_serve import repository
from nemotron_serve.repository import models_folder
from nemotron_serve.server import TritonServer
from tests.build.test_tensorrt_lane import H100, enter
from tests.serve.wire import ASK, MODELS, last, messages_json, metric, stream, text
from tests.standins.container import HERE, make_container
from tests.standins.tensorrt_llm import CALLS, DEADLY, ENGINE_NAME, UNWANTED
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.tiny_nemotron.nemo_file import NEMO
from tests.waiting import WAIT, until

STANDIN = HERE / "tensorrt_llm"


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "checkpoint"
    convert(NEMO, folder, Options(Parallel(1, 1), format=Format.HF))
    return folder


def own_profile(folder: Path, triton: Path) -> Profile:
    content = yaml.safe_load((profiles_folder() / "h100-bf16-tp8-pp2-pytorch.yaml").read_text())
    content["limits"]["max_queue_size"] = 100  # less than the stand-in's own
    content |= {"triton": str(triton), "ports": dict.fromkeys(content["ports"], 0)}
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    return load_profile(str(folder / "own.yaml"))


@pytest.fixture(scope="module")
def engine(
    hf: Path, engine_bf16: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Profile]]:
    """An engine of `nemotron build`, with the file that the stand-in needs beside it."""
    folder = tmp_path_factory.mktemp("pytorch")
    container = make_container(folder / "container", gpu=H100, version="1.3.0")
    with pytest.MonkeyPatch.context() as patch:
        enter(container, patch)
        profile = own_profile(folder, container.triton)
        build_engine(hf, folder / "engine", profile)
        (folder / "engine" / ENGINE_NAME).write_text(str(engine_bf16))
        yield folder / "engine", profile


def test_the_engine_is_the_checkpoint_under_a_second_name(
    engine: tuple[Path, Profile], hf: Path
) -> None:
    folder, _ = engine
    record = open_engine(folder)
    assert record.versions == {"tensorrt-llm": "1.3.0"}
    assert (folder / "model.safetensors").stat().st_ino == (hf / "model.safetensors").stat().st_ino
    settings = json.loads((folder / "pytorch_engine.json").read_text())
    assert (settings["tp"], settings["pp"], settings["max_seq_len"]) == (8, 2, 4096)


def test_a_checkpoint_of_another_kind(
    hf: Path, checkpoint_tp8: Path, engine: tuple[Path, Profile], tmp_path: Path
) -> None:
    _, profile = engine
    with pytest.raises(NemotronError, match=r"format trtllm.*convert with --format hf"):
        build_engine(checkpoint_tp8, tmp_path / "engine", profile)
    fp8 = load_profile("h100-fp8-tp8-pytorch")
    with pytest.raises(NemotronError, match="has dtype bf16, the profile fp8"):
        build_engine(hf, tmp_path / "engine", fp8)


def test_an_engine_of_two_nodes_wants_its_launcher(
    engine: tuple[Path, Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    lane, profile = PyTorchLane(), engine[1]
    assert isinstance(profile, PyTorchProfile)
    with pytest.raises(NemotronError, match=r"for 2 nodes.*--ntasks-per-node=8 .*llmapi-launch"):
        lane.check_machine(profile)
    monkeypatch.setenv(LAUNCHED, "1")
    lane.check_machine(profile)


class Answer:
    def __init__(self) -> None:
        self.chunks: queue.Queue[GenerationChunk | NemotronError] = queue.Queue()

    def rest(self) -> list[GenerationChunk | NemotronError]:
        chunks = [self.chunks.get(timeout=WAIT)]
        while not isinstance(chunks[-1], NemotronError) and chunks[-1].finish_reason is None:
            chunks.append(self.chunks.get(timeout=WAIT))
        return chunks


@pytest.fixture
def alone(engine: tuple[Path, Profile], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The engine without Triton, a new one for each test."""
    monkeypatch.syspath_prepend(str(HERE))
    from nemotron_engine.pytorch import PyTorchEngine

    folder, _ = engine
    (folder / CALLS).unlink(missing_ok=True)
    running = PyTorchEngine(folder)
    yield running
    running.close()


def ask(alone: Any, name: str = "1", **fields: Any) -> Answer:
    answer = Answer()
    base = GenerationRequest(request_id=name, input_ids=(4, 20, 30), max_tokens=20, end_ids=(5, 3))
    alone.submit_all([(replace(base, **fields), answer.chunks.put)])
    return answer


def calls(engine: tuple[Path, Profile]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (engine[0] / CALLS).read_text().splitlines()]


def test_what_the_library_is_asked(alone: Any, engine: tuple[Path, Profile]) -> None:
    ask(
        alone,
        temperature=0.7,
        seed=3,
        log_probs=True,
        presence_penalty=0.5,
        embedding_bias=(0.0,) * 1535 + (2.0,),
        guide_type="json_schema",
        guide="{}",
    ).rest()
    ask(alone, temperature=0.0).rest()
    ask(alone, end_ids=()).rest()
    start, drawn, greedy, endless = calls(engine)
    assert start["sizes"] == [64, 8192, 4096]
    assert (start["tp"], start["pp"], start["gpus_per_node"]) == (8, 2, 8)
    assert start["kv_cache"]["free_gpu_memory_fraction"] == 0.9
    assert (drawn["temperature"], drawn["top_p"], drawn["top_k"]) == (0.7, 1.0, None)
    assert (drawn["seed"], drawn["presence_penalty"], drawn["logprobs"]) == (3, 0.5, 0)
    assert drawn["embedding_bias"][-1] == 2.0
    assert drawn["guided_decoding"]["json"] == "{}"
    assert (greedy["top_k"], greedy["temperature"]) == (1, None)
    assert (greedy["end_id"], greedy["stop_token_ids"], greedy["ignore_eos"]) == (5, [3], False)
    assert (endless["end_id"], endless["ignore_eos"]) == (None, True)
    assert (drawn["detokenize"], drawn["include_stop_str_in_output"]) == (False, True)


def test_answers_in_pieces(alone: Any, answers: list[ExactAnswer], tokenizer: Tokenizer) -> None:
    exact = answers[2]
    prompt = tuple(prompt_ids(tokenizer, exact.question.messages))
    pieces = ask(alone, input_ids=prompt, max_tokens=200, log_probs=True).rest()
    ids = [id_ for piece in pieces for id_ in piece.token_ids]  # type: ignore[union-attr]
    assert ids == list(exact.token_ids)
    assert len(pieces) > 1  # the first token waits for nothing
    logs = [value for piece in pieces for value in piece.log_probs]  # type: ignore[union-attr]
    assert len(logs) == len(ids)
    assert all(value <= 0 for value in logs)


def test_cancel_deadline_and_queue(alone: Any) -> None:
    endless = {"max_tokens": 3000, "end_ids": ()}
    first = ask(alone, "first", **endless)
    first.chunks.get(timeout=WAIT)
    assert alone.cancel("first")
    assert first.rest()[-1].finish_reason == "cancelled"  # type: ignore[union-attr]
    assert not alone.cancel("first")
    late = ask(alone, "late", seconds=0.3, **endless)
    assert isinstance(late.rest()[-1], TimedOut)
    many = [ask(alone, str(number), **endless) for number in range(64 + 100)]
    assert alone.state().waiting == 100
    with pytest.raises(Overloaded, match="164 requests run or wait"):
        ask(alone, "one more")
    for number in range(len(many)):
        alone.cancel(str(number))
    finish_reasons = {getattr(answer.rest()[-1], "finish_reason", "an error") for answer in many}
    assert finish_reasons == {"cancelled"}


def test_what_the_library_refuses_is_the_requests_own_fault(alone: Any) -> None:
    (refusal,) = ask(alone, max_tokens=UNWANTED).rest()
    assert "the engine refuses the request: max_tokens is one too many" in str(refusal)
    assert ask(alone, max_tokens=3).rest()[-1].finish_reason is not None  # type: ignore[union-attr]


def test_an_end_token_that_is_not_the_first_one_is_in_the_answer(
    alone: Any, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[2]
    prompt = tuple(prompt_ids(tokenizer, exact.question.messages))
    pieces = ask(alone, input_ids=prompt, max_tokens=200, end_ids=(3, exact.token_ids[-1])).rest()
    ids = [id_ for piece in pieces for id_ in piece.token_ids]  # type: ignore[union-attr]
    assert ids == list(exact.token_ids)


def test_a_dead_engine_says_so_to_everybody(alone: Any) -> None:
    last_words = ask(alone, max_tokens=DEADLY).rest()[-1]
    assert isinstance(last_words, NemotronError)
    assert "the engine is dead: CUDA error" in str(last_words)
    with pytest.raises(EngineBroken, match=r"CUDA error.*: restart the server"):
        ask(alone, "2")


@pytest.fixture(scope="module")
def lane(
    engine: tuple[Path, Profile], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server whose model folder, which Triton puts on the path, holds the stand-in."""
    folder, profile = engine
    models = shutil.copytree(models_folder(), tmp_path_factory.mktemp("models") / "models")
    shutil.copytree(STANDIN, models / "tensorrt_llm" / "1" / "tensorrt_llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "resource", lambda *_: models)
        with TritonServer(folder, profile) as running:
            yield running


@pytest.mark.parametrize("model", MODELS)
def test_the_lane_answers(model: str, lane: TritonServer, answers: list[ExactAnswer]) -> None:
    for exact in answers[::60]:
        prompt = messages_json(exact.question.messages)
        responses = stream(lane, model, messages=prompt, max_tokens=200, stream=True)
        assert text(responses) == exact.question.answer
        assert last(responses, "finish_reason") == "stop"


def test_several_answers_and_a_stop_string(lane: TritonServer, answers: list[ExactAnswer]) -> None:
    exact = max(answers, key=lambda exact: len(exact.question.answer))
    stop = exact.question.answer[20:26]
    fields = {"messages": messages_json(exact.question.messages), "max_tokens": 200}
    responses = stream(lane, stop_words=stop, num_return_sequences=2, **fields)
    assert [text([part]) for part in responses] == [exact.question.answer[:20]] * 2


def test_sampling_means_the_same_as_on_the_cpu_lane(
    lane: TritonServer, server: TritonServer
) -> None:
    fields = {"messages": ASK, "max_tokens": 60, "seed": 7, "temperature": 1.5}
    assert text(stream(lane, **fields)) == text(stream(server, **fields))


def test_a_client_that_disconnects_frees_the_engine(lane: TritonServer) -> None:
    with Client(f"127.0.0.1:{lane.endpoints.grpc}") as client:
        pieces = client.stream_complete("<extra_id_1>Count", Generation(max_tokens=3000, end_id=0))
        next(pieces)
        pieces.close()
    until(lambda: not metric(lane, RUNNING_METRIC))
    until(lambda: metric(lane, GENERATED_TOKENS_METRIC) > 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bad_words": ["no"]}, "bad_words is not on the engine of the lane pytorch"),
        ({"beam_width": 2}, "beam_width is not on the engine of the lane pytorch"),
        (
            {"guided_decoding_guide_type": "prose", "guided_decoding_guide": "x"},
            "guided_decoding_guide_type is 'prose'",
        ),
        ({"guided_decoding_guide_type": "regex"}, "do not go together"),
        ({"guided_decoding_guide": "x"}, "do not go together"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str, lane: TritonServer) -> None:
    with pytest.raises(InferenceServerException, match=message):
        stream(lane, messages=ASK, max_tokens=5, **fields)
