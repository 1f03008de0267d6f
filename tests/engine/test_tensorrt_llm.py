"""The adapters of the GPU lanes, with a stand-in for TensorRT-LLM that computes on the CPU."""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from nemotron_core.engine_settings import PyTorchEngineSettings, TensorRTEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from nemotron_engine.adapters import load_adapter
from nemotron_engine.adapters.adapter import Adapter
from nemotron_engine.protocol import Chunk, Request
from tests.standins.container import add_library
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.waiting import WAIT, until

LANES = ("tensorrt", "pytorch")
CALLS, ENGINE_NAME = "NEMOTRON_STANDIN_CALLS", "NEMOTRON_STANDIN_ENGINE"
DEADLY, UNWANTED, SILENT = 1313, 1414, 1515
LIMITS: dict[str, Any] = {
    "vocab_size": 1536,
    "max_seq_len": 4096,
    "max_batch_size": 64,
    "max_num_tokens": 8192,
    "max_queue_size": 448,
    "request_seconds": 3600,
    "kv_cache_share": 0.9,
}
MAPPING = {"world_size": 2, "tp_size": 2, "pp_size": 1}
BUILT = {"max_batch_size": 64, "gather_context_logits": False, "gather_generation_logits": False}


@pytest.fixture
def version() -> str:
    return "1.2.1"


@pytest.fixture
def library(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    packages = tmp_path / "packages"
    add_library(packages, version)
    monkeypatch.syspath_prepend(str(packages))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


@pytest.fixture
def folders(tmp_path: Path, engine_bf16: Path) -> dict[str, Path]:
    """An engine folder of each lane, with what its adapter and the stand-in read."""
    folders = {lane: tmp_path / lane for lane in LANES}
    for folder in folders.values():
        folder.mkdir()
        shutil.copy(engine_bf16 / "tokenizer.model", folder)
        (folder / "tokenizer.json").write_text("{}")
        (folder / ENGINE_NAME).write_text(str(engine_bf16))
    TensorRTEngineSettings(paged_context=True, **LIMITS).write(folders["tensorrt"])
    config = {"pretrained_config": {"mapping": MAPPING}, "build_config": BUILT}
    (folders["tensorrt"] / "config.json").write_text(json.dumps(config))
    for rank in range(MAPPING["world_size"]):
        (folders["tensorrt"] / f"rank{rank}.engine").touch()
    PyTorchEngineSettings(tp=8, pp=2, gpus_per_node=8, kv_cache_dtype="fp8", **LIMITS).write(
        folders["pytorch"]
    )
    (folders["pytorch"] / "config.json").write_text('{"model_type": "nemotron"}')
    return folders


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass
class Engine:
    """A loaded adapter, and what it has returned for each request."""

    adapter: Adapter
    folder: Path
    chunks: dict[bytes, list[Chunk]] = field(default_factory=dict)

    def ask(self, **fields: Any) -> bytes:
        base = Request(key=secrets.token_bytes(16), input_ids=[4, 20, 30], max_tokens=20)
        request = msgspec.structs.replace(base, **({"end_ids": [5, 3]} | fields))
        self.chunks[request.key] = []
        self.adapter.ask(request)
        return request.key

    def collect(self) -> None:
        """Wait for the wake file, and take what there is."""
        assert self.adapter.wake_file is not None
        assert select.select([self.adapter.wake_file], [], [], WAIT)[0]
        for chunk in self.adapter.collect():
            self.chunks[chunk.key].append(chunk)

    def rest(self, key: bytes) -> list[Chunk]:
        while not (self.chunks[key] and self.chunks[key][-1].finish_reason):
            self.collect()
        return self.chunks[key]

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / CALLS).read_text().splitlines()]


@pytest.fixture
def engine(library: None, folders: dict[str, Path], lane: str) -> Iterator[Engine]:
    adapter = load_adapter(lane, folders[lane])
    yield Engine(adapter, folders[lane])
    adapter.close()


@pytest.fixture
def scoring(library: None, folders: dict[str, Path], lane: str) -> Iterator[Engine]:
    """An engine with all logits, if they have to be built in."""
    folder = folders["tensorrt"]
    TensorRTEngineSettings(paged_context=True, logits="context", **LIMITS).write(folder)
    config = json.loads((folder / "config.json").read_text())
    config["build_config"] |= {"gather_context_logits": True, "gather_generation_logits": True}
    (folder / "config.json").write_text(json.dumps(config))
    adapter = load_adapter(lane, folders[lane])
    yield Engine(adapter, folders[lane])
    adapter.close()


def ids_of(chunks: list[Chunk]) -> list[int]:
    return [id_ for chunk in chunks for id_ in chunk.token_ids]


def test_what_the_library_is_asked(engine: Engine, lane: str) -> None:
    engine.rest(
        engine.ask(
            temperature=0.7,
            seed=3,
            presence_penalty=0.5,
            bias={1535: 2.0},
            guide_type="json_schema",
            guide="{}",
        )
    )
    engine.rest(engine.ask(top_k=40, top_p=0.0, temperature=0.0))
    engine.rest(engine.ask(end_ids=[], min_tokens=2))
    start, drawn, greedy, endless = engine.calls()
    assert (start["max_batch_size"], start["max_num_tokens"]) == (64, 8192)
    assert (start["enable_chunked_prefill"], start["guided_decoding_backend"]) == (True, "xgrammar")
    assert start["kv_cache_config"]["free_gpu_memory_fraction"] == 0.9
    dtype = "fp8" if lane == "pytorch" else "auto"
    assert start["kv_cache_config"] | {"dtype": dtype} == start["kv_cache_config"]
    assert ("tensor_parallel_size" in start) == (lane == "pytorch")
    if lane == "pytorch":
        graphs = {"batch_sizes": None, "max_batch_size": 64, "enable_padding": True}
        assert start["cuda_graph_config"] == graphs
        assert (start["disable_overlap_scheduler"], start["stream_interval"]) == (False, 1)
    assert (drawn["temperature"], drawn["top_p"], drawn["top_k"]) == (0.7, 1.0, None)
    assert (drawn["seed"], drawn["presence_penalty"]) == (3, 0.5)
    assert drawn["embedding_bias"] == [0.0] * 1535 + [2.0]
    assert drawn["guided_decoding"]["json"] == "{}"
    assert (greedy["top_k"], greedy["temperature"], greedy["top_p"]) == (1, None, None)
    assert (endless["end_id"], endless["stop_token_ids"], endless["min_tokens"]) == (-1, None, None)
    assert {call["detokenize"] for call in (drawn, greedy, endless)} == {False}


@pytest.mark.parametrize("fields", [{}, {"min_tokens": 1}, {"log_probs": True}])
def test_an_answer_with_its_end_token(
    fields: dict[str, Any],
    engine: Engine,
    answers: list[ExactAnswer],
    tokenizer: Tokenizer,
) -> None:
    exact = answers[2]
    prompt = list(prompt_ids(tokenizer, exact.question.messages))
    chunks = engine.rest(engine.ask(input_ids=prompt, max_tokens=200, **fields))
    assert ids_of(chunks) == list(exact.token_ids)
    assert chunks[-1].finish_reason == "stop"
    log_probs = [value for chunk in chunks for value in chunk.log_probs]
    assert len(log_probs) == len(exact.token_ids) * ("log_probs" in fields)
    assert all(value < 0 for value in log_probs)  # 0 is what the stand-in has for another token
    assert log_probs == [] or sum(log_probs) > -len(log_probs)


def test_an_end_token_that_is_not_the_first_one(
    engine: Engine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[2]
    prompt = list(prompt_ids(tokenizer, exact.question.messages))
    ends = {"end_ids": [3, exact.token_ids[-1]], "min_tokens": 1}
    assert ids_of(engine.rest(engine.ask(input_ids=prompt, max_tokens=200, **ends))) == list(
        exact.token_ids
    )


def test_tokens_wait_together_until_they_are_collected(engine: Engine) -> None:
    adapter: Any = engine.adapter
    keys = [engine.ask(max_tokens=30, end_ids=[]) for _ in range(3)]
    until(lambda: len(adapter._pending._chunks) == 3)
    until(lambda: not adapter._tasks)
    chunks = [engine.rest(key) for key in keys]
    assert [len(ids_of(pieces)) for pieces in chunks] == [30] * 3
    assert [len(pieces) for pieces in chunks] == [1] * 3
    assert {pieces[-1].finish_reason for pieces in chunks} == {"length"}
    assert not select.select([adapter.wake_file], [], [], 0)[0]


def test_a_cancelled_request_frees_the_library(engine: Engine) -> None:
    endless = [engine.ask(max_tokens=3000, end_ids=[]) for _ in range(64)]
    waiting = engine.ask(max_tokens=2)
    while not all(engine.chunks[key] for key in endless):
        engine.collect()
    for key in endless:
        engine.adapter.cancel(key)
    engine.adapter.cancel(bytes(16))
    assert len(ids_of(engine.rest(waiting))) == 2


def test_what_the_library_refuses_is_the_requests_own_fault(engine: Engine) -> None:
    (refusal,) = engine.rest(engine.ask(max_tokens=UNWANTED))
    assert "the engine refuses the request: max_tokens is one too many" in str(refusal.failure())
    assert engine.rest(engine.ask(max_tokens=3))[-1].finish_reason == "length"


def test_a_dead_library_ends_the_engine_at_the_next_request(engine: Engine) -> None:
    engine.ask(max_tokens=DEADLY)
    key = engine.ask(max_tokens=3)
    with pytest.raises(RuntimeError, match="CUDA error"):
        engine.rest(key)
    with pytest.raises(RuntimeError, match="CUDA error"):
        engine.adapter.collect()


def test_a_killed_library_is_silent(engine: Engine) -> None:
    """Nothing is raised, so the engine's watch over progress has to notice."""
    adapter: Any = engine.adapter
    engine.ask(max_tokens=SILENT)
    engine.ask(max_tokens=3)
    until(lambda: len(adapter._tasks) == 2)
    assert list(engine.adapter.collect()) == []


@pytest.mark.parametrize("lane", ["pytorch"])
def test_parts_of_several_tokens(
    library: None, folders: dict[str, Path], lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PyTorchEngineSettings.read(folders[lane])
    settings.model_copy(update={"stream_interval": 4}).write(folders[lane])
    adapter: Any = load_adapter(lane, folders[lane])
    sizes, push = [], adapter._push

    def note(chunk: Chunk) -> None:
        sizes.append(len(chunk.token_ids))
        push(chunk)

    monkeypatch.setattr(adapter, "_push", note)
    engine = Engine(adapter, folders[lane])
    assert len(ids_of(engine.rest(engine.ask(max_tokens=10, end_ids=[])))) == 10
    assert sizes == [1, 4, 4, 1]
    adapter.close()


def test_missing_log_probabilities_are_said(
    library: None, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    adapter: Any = load_adapter(lane, folders[lane])
    monkeypatch.setattr(adapter._log_probs, "fields", lambda _: {"logprobs": 0})
    engine = Engine(adapter, folders[lane])
    failure = engine.rest(engine.ask(log_probs=True))[-1].failure()
    assert "1 tokens have 0 log-probabilities" in str(failure)
    adapter.close()


def test_what_engines_can_do(engine: Engine, lane: str) -> None:
    able, scored = engine.adapter.capabilities, ["top_log_probs", "prompt_log_probs"]
    assert able.features == ["bias", "guides", *(scored if lane == "pytorch" else [])]
    assert able.max_log_probs == (20 if lane == "pytorch" else 0)


@pytest.mark.parametrize("lane", ["pytorch"])
@pytest.mark.parametrize("version", ["1.3.0"])
def test_priorities(engine: Engine, version: str, lane: str) -> None:
    """Ours are lower first and any number, the library's higher first and 0 to 1."""
    assert "priorities" in engine.adapter.capabilities.features
    for priority in (-1000, -1, 0, 1, 2, 1000):
        engine.rest(engine.ask(priority=priority, max_tokens=1))
    _start, *calls = engine.calls()
    given = [call["priority"] for call in calls]
    assert given[2] == 0.5
    assert given == sorted({*given}, reverse=True)
    assert all(0 < value < 1 for value in given)


@pytest.mark.parametrize(
    ("logits", "scored"),
    [("generation", ["top_log_probs"]), ("context", ["top_log_probs", "prompt_log_probs"])],
)
def test_what_engines_with_logits_can_do(
    logits: Any, scored: list[str], library: None, folders: dict[str, Path]
) -> None:
    TensorRTEngineSettings(paged_context=True, logits=logits, **LIMITS).write(folders["tensorrt"])
    adapter = load_adapter("tensorrt", folders["tensorrt"])
    assert adapter.capabilities.features == ["bias", "guides", *scored]
    assert adapter.capabilities.max_log_probs == 20
    adapter.close()


def test_alternatives_to_the_tokens(scoring: Engine) -> None:
    """The stand-in invents them: after the token by id, with log-probabilities of -1/16 and on."""
    plain = scoring.rest(scoring.ask(log_probs=True, end_ids=[]))
    both = scoring.rest(scoring.ask(log_probs=True, top_log_probs=2, end_ids=[]))
    only = scoring.rest(scoring.ask(top_log_probs=2, end_ids=[]))
    ids = ids_of(plain)
    assert ids == ids_of(both) == ids_of(only)
    values, others = ([v for c in chunks for v in c.log_probs] for chunks in (plain, both))
    assert values == others
    assert [value for chunk in only for value in chunk.log_probs] == []
    expected = [[((id_ + 1) % 1536, -1 / 16), ((id_ + 2) % 1536, -2 / 16)] for id_ in ids]
    for chunks in (both, only):
        assert [entries for chunk in chunks for entries in chunk.top_log_probs] == expected


def test_an_added_end_token_has_no_alternatives(
    scoring: Engine, lane: str, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[2]
    prompt = list(prompt_ids(tokenizer, exact.question.messages))
    chunks = scoring.rest(
        scoring.ask(input_ids=prompt, max_tokens=200, min_tokens=1, top_log_probs=1)
    )
    assert ids_of(chunks) == list(exact.token_ids)
    top = [entries for chunk in chunks for entries in chunk.top_log_probs]
    assert [len(entries) for entries in top] == [1] * (len(top) - 1) + [int(lane == "pytorch")]


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize(
    ("lane", "version"), [("tensorrt", "1.2.1"), ("pytorch", "1.2.1"), ("pytorch", "1.3.0")]
)
def test_log_probabilities_of_a_prompt(scoring: Engine, version: str, count: int) -> None:
    prompt = [4, 20, 30] * 30
    logits = sys.modules["tensorrt_llm.result"].context_logits(prompt, 1536).numpy()
    log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    (chunk,) = scoring.rest(
        scoring.ask(input_ids=prompt, prompt_log_probs=count, max_tokens=3, end_ids=[])
    )
    assert (len(chunk.token_ids), chunk.finish_reason) == (3, "length")
    first, *rest = chunk.prompt_log_probs
    assert (first, len(rest)) == ([], len(prompt) - 1)
    for row, id_, (own, *best) in zip(log_probs, prompt[1:], rest, strict=False):
        assert own == (id_, pytest.approx(row[id_], abs=1e-5))
        order = np.argsort(-row, kind="stable")[:count].tolist()
        assert best == [(other, pytest.approx(row[other], abs=1e-5)) for other in order]
    asked = scoring.calls()[-1]
    assert asked["return_context_logits"] == (version == "1.2.1")
    assert (asked["streaming"], len(asked["cache_salt"])) == (False, 32)


def test_positions_that_are_missing_are_said(
    scoring: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = sys.modules["tensorrt_llm.result"]
    whole = result.context_logits
    monkeypatch.setattr(result, "context_logits", lambda ids, size: whole(ids[1:], size))
    failure = scoring.rest(scoring.ask(prompt_log_probs=1))[-1].failure()
    assert "3 tokens of the prompt have 2 logits" in str(failure)


def test_the_split_is_the_engines(library: None, folders: dict[str, Path]) -> None:
    (folders["tensorrt"] / "rank1.engine").unlink()
    with pytest.raises(NemotronError, match=r"no engine of rank 1.*build the engine again"):
        load_adapter("tensorrt", folders["tensorrt"])


def test_a_folder_of_another_lane(library: None, folders: dict[str, Path]) -> None:
    with pytest.raises(NemotronError, match="not an engine of this lane"):
        load_adapter("tensorrt", folders["pytorch"])


def test_usage_is_not_reported(engine: Engine) -> None:
    assert os.environ["TRTLLM_NO_USAGE_STATS"] == "1"
    assert engine.adapter.library == "tensorrt-llm 1.2.1"
