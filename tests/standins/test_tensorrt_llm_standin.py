"""The stand-in for TensorRT-LLM refuses and returns what the library's sources say."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.standins.container import add_library

VOCAB_SIZE, SPLIT = 1536, {"world_size": 2, "tp_size": 2, "pp_size": 1}
PROMPT = [4, 20, 30]
DEADLY, SILENT = 1313, 1515
GREEDY: dict[str, Any] = {"end_id": -1, "max_tokens": 5, "top_k": 1}
CLASSES = {"tensorrt": "tensorrt_llm._tensorrt_engine", "pytorch": "tensorrt_llm"}


class Library:
    """The stand-in as installed, and folders that its classes load."""

    def __init__(self, folder: Path, engine: Path) -> None:
        self._folder, self._engine = folder, engine
        self._loaded: list[Any] = []

    @property
    def api(self) -> Any:
        return importlib.import_module("tensorrt_llm")

    def load(
        self, lane: str, *, context: bool = False, generation: bool = False, **keys: Any
    ) -> Any:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        (folder / "NEMOTRON_STANDIN_ENGINE").write_text(str(self._engine))
        (folder / "tokenizer.json").write_text("{}")
        for rank in range(2):
            (folder / f"rank{rank}.engine").touch()
        built = {
            "max_batch_size": 8,
            "gather_context_logits": context,
            "gather_generation_logits": generation,
        }
        config = {"pretrained_config": {"mapping": SPLIT}, "build_config": built}
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "nemotron"}))
        llm = importlib.import_module(CLASSES[lane]).LLM(str(folder), **keys)
        self._loaded.append(llm)
        return llm

    def close(self) -> None:
        for llm in self._loaded:
            llm.shutdown()


@pytest.fixture
def version() -> str:
    return "1.2.1"


@pytest.fixture
def library(
    version: str, tmp_path: Path, engine_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Library]:
    add_library(tmp_path / "packages", version)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    library = Library(tmp_path, engine_bf16)
    yield library
    library.close()
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


@pytest.fixture(params=CLASSES)
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def answer(llm: Any, prompt: list[int] = PROMPT, *, streaming: bool = True, **keys: Any) -> Any:
    """Return the result of a request, and the lengths of its responses as `steps`."""

    async def run() -> Any:
        params = importlib.import_module("tensorrt_llm").SamplingParams(**GREEDY | keys)
        result = llm.generate_async(prompt, params, streaming=streaming)
        result.steps = []
        async for step in result:
            assert step is result
            result.steps.append(len(step.outputs[0].token_ids_diff))
        return result

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "lanes"),
    [
        ("no_such_argument", []),
        ("stream_interval", ["pytorch"]),
        ("disable_overlap_scheduler", ["pytorch"]),
        ("cuda_graph_config", ["pytorch"]),
        ("batching_type", ["tensorrt"]),
    ],
)
def test_arguments_that_a_class_lacks(
    library: Library, lane: str, name: str, lanes: list[str]
) -> None:
    keys = {name: library.api.llmapi.CudaGraphConfig() if "config" in name else 1}
    if lane in lanes:
        library.load(lane, **keys)
        return
    with pytest.raises(ValueError, match=f"LLM got invalid argument: {name}"):
        library.load(lane, **keys)


def test_configurations_refuse_unknown_fields(library: Library) -> None:
    llmapi = library.api.llmapi
    with pytest.raises(ValueError, match="no_such_field"):
        llmapi.KvCacheConfig(no_such_field=1)
    with pytest.raises(ValueError, match="do not agree"):
        llmapi.CudaGraphConfig(batch_sizes=[1, 2], max_batch_size=4)


@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_a_split_that_is_not_the_engines(library: Library, name: str) -> None:
    with pytest.raises(ValueError, match="is not consistent with the engine's"):
        library.load("tensorrt", **{name: 4})
    library.load("tensorrt", tensor_parallel_size=2)


def test_a_larger_batch_than_built_is_clamped(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    assert library.load("tensorrt", max_batch_size=4).max_batch_size == 4
    assert not caplog.records
    assert library.load("tensorrt", max_batch_size=9).max_batch_size == 8
    assert caplog.record_tuples == [
        ("TRT-LLM", logging.WARNING, "max_batch_size [9] is clamped to 8")
    ]
    assert library.load("pytorch", max_batch_size=9).max_batch_size == 9


def test_the_kv_cache_of_an_engine_has_its_type(library: Library) -> None:
    config = library.api.llmapi.KvCacheConfig(dtype="fp8")
    library.load("pytorch", kv_cache_config=config)
    with pytest.raises(AssertionError):
        library.load("tensorrt", kv_cache_config=config)


def test_backends_of_guides(library: Library, lane: str) -> None:
    library.load(lane, guided_decoding_backend="xgrammar")
    with pytest.raises(ValueError, match="Unsupported guided decoding backend"):
        library.load(lane, guided_decoding_backend="outlines")
    with pytest.raises(ValueError, match="vocabulary of the tokenizer"):
        library.load(lane, guided_decoding_backend="xgrammar", skip_tokenizer_init=True)
    if lane == "pytorch":
        library.load(lane, guided_decoding_backend="llguidance")
        return
    with pytest.raises(ValueError, match="Unsupported guided decoding backend llguidance"):
        library.load(lane, guided_decoding_backend="llguidance")


@pytest.mark.parametrize("version", ["1.3.0"])
def test_engines_end_with_1_2(library: Library, version: str) -> None:
    library.load("pytorch")
    with pytest.raises(ImportError, match=r"1\.3\.0 has no engines"):
        library.load("tensorrt")


@pytest.mark.parametrize("version", ["1.3.0"])
def test_priorities_begin_with_1_3(library: Library, version: str) -> None:
    with pytest.raises(ValueError, match=r"priority must be between 0\.0 and 1\.0, got 1\.5"):
        library.load("pytorch").generate_async(
            PROMPT, library.api.SamplingParams(**GREEDY), priority=1.5
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": -0.1}, "require temperature >= 0"),
        ({"top_p": 1.1}, "require 0 <= top_p <= 1"),
        ({"top_k": -1}, "require top_k >= 0"),
        ({"min_tokens": 6}, "min_tokens 6 is more than 5"),
        ({"n": 2}, "does not allow multiple returns"),
        ({"n": 3, "best_of": 2, "temperature": 1.0, "top_k": 0}, "cannot be less than n"),
    ],
)
def test_sampling_parameters_that_make_no_sense(
    library: Library, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        library.api.SamplingParams(**GREEDY | keys)
    with pytest.raises(ValueError, match="Only one guide"):
        guide = library.api.llmapi.GuidedDecodingParams(json="{}", regex="a")
        library.api.SamplingParams(guided_decoding=guide)


def test_names_of_no_parameter(library: Library, lane: str) -> None:
    with pytest.raises(TypeError, match="logit_bias"):
        library.api.SamplingParams(logit_bias={1: 2.0})
    with pytest.raises(TypeError, match="priority"):
        library.load(lane).generate_async(PROMPT, library.api.SamplingParams(), priority=0.5)


def test_no_end_id_without_a_tokenizer(library: Library, lane: str) -> None:
    with pytest.raises(ValueError, match="tokenizer is required to reset end_id"):
        answer(library.load(lane, skip_tokenizer_init=True), end_id=None)


def test_log_probabilities_need_an_engine_and_an_argument(library: Library) -> None:
    plain = library.load("tensorrt")
    with pytest.raises(ValueError, match="gather_generation_logits=True"):
        answer(plain, logprobs=1)
    with pytest.raises(ValueError, match="gather_context_logits=True"):
        answer(plain, prompt_logprobs=1)
    with pytest.raises(RuntimeError, match="without context logits"):
        answer(plain, return_context_logits=True)
    with pytest.raises(RuntimeError, match="without generation logits"):
        answer(library.load("tensorrt", gather_generation_logits=True), logprobs=1)
    (output,) = answer(plain, _return_log_probs=True).outputs
    assert all(value < 0 for value in output.logprobs)
    whole = library.load("tensorrt", gather_generation_logits=True, generation=True)
    (output,) = answer(whole, logprobs=2).outputs
    assert [len(table) for table in output.logprobs] == [3] * 5


def test_no_log_probabilities_means_none(library: Library, lane: str) -> None:
    """`logprobs=0` is false, and so is `prompt_logprobs=0`."""
    (output,) = answer(library.load(lane), logprobs=0, prompt_logprobs=0).outputs
    assert (output.logprobs, output.prompt_logprobs) == ([], [])


@pytest.mark.parametrize("version", ["1.2.1", "1.3.0"])
def test_a_prompts_own_tokens_come_from_1_3_on(library: Library, version: str) -> None:
    result = answer(library.load("pytorch"), prompt_logprobs=2)
    (output,) = result.outputs
    following = [*PROMPT[1:], output.token_ids[0]]
    tables = output.prompt_logprobs
    assert len(tables) == len(PROMPT)
    has_own = [id_ in table for id_, table in zip(following, tables, strict=True)]
    assert has_own == [version == "1.3.0"] * 3
    assert all(sorted(entry.rank for entry in table.values())[:2] == [1, 2] for table in tables)


def test_whole_logits_of_a_prompt(library: Library, lane: str) -> None:
    result = answer(library.load(lane, context=True), return_context_logits=True)
    assert result.context_logits.shape == (len(PROMPT), VOCAB_SIZE)


def test_a_result_is_one_object_that_grows(library: Library, lane: str) -> None:
    asked = {"tensorrt": {"_return_log_probs": True}, "pytorch": {"logprobs": 1}}[lane]
    llm = library.load(lane)

    async def run() -> None:
        params = library.api.SamplingParams(**GREEDY | asked)
        result = llm.generate_async(PROMPT, params, streaming=True)
        whole: list[int] = []
        async for step in result:
            assert step is result
            (output,) = step.outputs
            whole += output.token_ids_diff
            assert output.token_ids == whole
            assert len(output.logprobs) == output.length == len(whole)
            assert output.logprobs[-1:] == output.logprobs_diff
        assert (output.finish_reason, len(whole)) == ("length", 5)

    asyncio.run(run())
    assert answer(llm, streaming=False).steps == [5]


def test_several_tokens_a_response(library: Library) -> None:
    llm = library.load("pytorch", stream_interval=3)
    assert answer(llm, max_tokens=9).steps == [1, 3, 3, 2]
    with pytest.raises(ValueError, match="stream_interval must be positive"):
        library.load("pytorch", stream_interval=0)


def test_an_aborted_request_ends_as_cancelled(library: Library, lane: str) -> None:
    llm = library.load(lane)

    async def run() -> None:
        params = library.api.SamplingParams(**GREEDY | {"max_tokens": 3000})
        result = llm.generate_async(PROMPT, params, streaming=True)
        result.abort()
        async for _ in result:
            pass
        assert result.aborted()
        assert result.outputs[0].finish_reason == "cancelled"

    asyncio.run(run())


@pytest.mark.parametrize(
    "keys",
    [
        {"end_id": VOCAB_SIZE},
        {"end_id": -2},
        {"stop_token_ids": [VOCAB_SIZE]},
        {"stop_token_ids": [-1]},
        {"bad_token_ids": [VOCAB_SIZE]},
        {"min_tokens": 2},
        {"end_id": 5, "min_tokens": 2, "ignore_eos": True},
        {"prompt": [VOCAB_SIZE]},
    ],
)
def test_ids_outside_the_vocabulary_end_the_library(
    library: Library, lane: str, keys: dict[str, Any]
) -> None:
    llm = library.load(lane)
    with pytest.raises(RuntimeError, match="CUDA error"):
        answer(llm, **keys)
    with pytest.raises(RuntimeError, match="LLM is shutting down"):
        answer(llm)


def test_a_bias_that_is_no_vocabulary_ends_the_library(library: Library, lane: str) -> None:
    torch = importlib.import_module("torch")
    with pytest.raises(RuntimeError, match="a bias of the shape"):
        answer(library.load(lane), embedding_bias=torch.zeros(3))


def test_the_end_token_may_be_held_back(library: Library, lane: str) -> None:
    assert answer(library.load(lane), end_id=5, min_tokens=2, max_tokens=9).finished


def test_a_dead_worker_is_known_at_the_next_submit(library: Library, lane: str) -> None:
    llm = library.load(lane)

    async def run() -> None:
        params = library.api.SamplingParams
        llm.generate_async(PROMPT, params(**GREEDY | {"max_tokens": DEADLY}), streaming=True)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            llm.generate_async(PROMPT, params(**GREEDY), streaming=True)
        with pytest.raises(RuntimeError, match="LLM is shutting down"):
            llm.generate_async(PROMPT, params(**GREEDY), streaming=True)

    asyncio.run(run())


def test_a_dead_worker_is_known_at_the_next_read(library: Library, lane: str) -> None:
    llm = library.load(lane)

    async def run() -> None:
        params = library.api.SamplingParams
        early = llm.generate_async(PROMPT, params(**GREEDY), streaming=True)
        while early._chunks.qsize() < 2:
            await asyncio.sleep(0.01)
        llm.generate_async(PROMPT, params(**GREEDY | {"max_tokens": DEADLY}), streaming=True)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            await anext(early)
        assert early.outputs[0].length == 1

    asyncio.run(run())


def test_a_killed_worker_is_never_known(library: Library, lane: str) -> None:
    llm = library.load(lane)

    async def run() -> None:
        params = library.api.SamplingParams
        llm.generate_async(PROMPT, params(**GREEDY | {"max_tokens": SILENT}), streaming=True)
        later = llm.generate_async(PROMPT, params(**GREEDY), streaming=True)
        assert not llm.worker.is_alive
        assert later._chunks.empty()

    asyncio.run(run())
