"""The CPU engine against transformers, token by token."""

from __future__ import annotations

import math
import queue
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import NemotronForCausalLM

from nemotron_build.engine_folder import build_engine
from nemotron_build.openvino_model import Precision, build_model
from nemotron_build.profile import Profile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from nemotron_engine.cpu import CpuEngine
from tests.engine.requests import NEVER, Answer, ask, request
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.tiny_nemotron.reference import greedy, load_hf_model
from tests.waiting import WAIT

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def f32(engine_f32: Path) -> Iterator[CpuEngine]:
    engine = CpuEngine(engine_f32)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def bf16(engine_bf16: Path) -> Iterator[CpuEngine]:
    engine = CpuEngine(engine_bf16)
    yield engine
    engine.close()


def exact_fraction(engine: CpuEngine, answers: list[ExactAnswer], tokenizer: Tokenizer) -> float:
    running = [
        ask(engine, prompt_ids(tokenizer, exact.question.messages), str(i), max_tokens=200)
        for i, exact in enumerate(answers)
    ]
    is_exact = [
        answer.wait().token_ids == exact.token_ids
        for answer, exact in zip(running, answers, strict=True)
    ]
    return sum(is_exact) / len(is_exact)


def test_f32_is_transformers_on_every_answer(
    f32: CpuEngine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    assert exact_fraction(f32, answers, tokenizer) == 1


def test_bf16_keeps_the_answers(
    bf16: CpuEngine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    assert exact_fraction(bf16, answers, tokenizer) >= 0.98


@pytest.mark.parametrize("length", [200, 1000, 3500])
def test_bf16_is_near_transformers_however_long_the_prompt(bf16: CpuEngine, length: int) -> None:
    """Computed in BF16, positions above 256 would be rounded, and the answers would differ."""
    model = load_hf_model()
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(300, model.config.vocab_size, (length,), generator=generator).tolist()
    answer = ask(bf16, ids, max_tokens=32, end_ids=(NEVER,), log_probs=True).wait()
    with torch.inference_mode():
        logits = model(torch.tensor([ids + answer.token_ids[:-1]])).logits[0, length - 1 :]
    expected = logits.log_softmax(-1)
    chosen = torch.tensor(answer.token_ids)
    assert (expected.argmax(-1) == chosen).float().mean() >= 0.9
    difference = expected.gather(1, chosen[:, None])[:, 0] - torch.tensor(answer.log_probs)
    assert difference.abs().mean() < 0.05


def test_f32_is_transformers_one_request_at_a_time(
    f32: CpuEngine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    for exact in answers[::25]:
        alone = ask(f32, prompt_ids(tokenizer, exact.question.messages), max_tokens=200).wait()
        assert alone.token_ids == exact.token_ids
        assert alone.finish_reason == "stop"
        assert alone.chunks > 1


def round_norms(model: NemotronForCausalLM) -> None:
    """Give transformers the checkpoint's values: gamma + 1 rounded to BF16, bit for bit ModelOpt's.

    Transformers adds the 1 in float32, which moves the log-probabilities of these random weights
    by 0.02; the model the engine is built from has lost that difference.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.copy_((weight + 1).bfloat16().float() - 1)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory, cpu_profile: Profile) -> Iterator[CpuEngine]:
    folder = tmp_path_factory.mktemp("golden")
    convert(GOLDEN / "tiny_zarr_tp1pp1.nemo", folder / "checkpoint", Options(Parallel(2, 2)))
    build_engine(
        folder / "checkpoint", folder / "engine", cpu_profile.model_copy(update={"dtype": "f32"})
    )
    engine = CpuEngine(folder / "engine")
    yield engine
    engine.close()


def test_f32_is_transformers_on_random_weights_with_32_requests_joining_and_leaving(
    golden: CpuEngine,
) -> None:
    """Prompts and answers of every length; each request starts while others are running."""
    model = NemotronForCausalLM.from_pretrained(GOLDEN / "hf_tiny", dtype=torch.float32)
    round_norms(model)
    generator = torch.Generator().manual_seed(7)
    prompts = [
        torch.randint(6, 500, (int(n),), generator=generator).tolist()
        for n in torch.randint(1, 120, (32,), generator=generator)
    ]
    lengths = [8 + 3 * i % 60 for i in range(32)]
    expected = greedy(model, prompts, max_tokens=max(lengths), end_id=NEVER, batch=1)
    running: queue.Queue[Answer] = queue.Queue()
    collected = []
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        collected.append(ask(golden, prompt, str(i), max_tokens=length, end_ids=(NEVER,)))
        running.put(collected[-1])
        if i % 3 == 2:  # wait for the oldest to speak, so that the next joins in the middle
            assert running.get().first.wait(WAIT)
    for answer, ids, length in zip(collected, expected, lengths, strict=True):
        assert answer.wait().token_ids == ids[:length]
        assert answer.finish_reason == ("stop" if NEVER in ids[:length] else "length")
    for i, (prompt, ids) in enumerate(zip(prompts[:6], expected, strict=False)):
        alone = ask(golden, prompt, max_tokens=lengths[i], end_ids=(NEVER,)).wait()
        assert alone.token_ids == ids[: lengths[i]]


def test_log_probabilities_are_transformers(
    f32: CpuEngine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[0]
    prompt = prompt_ids(tokenizer, exact.question.messages)
    answer = ask(f32, prompt, log_probs=True, max_tokens=200).wait()
    model = load_hf_model()
    round_norms(model)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + exact.token_ids])).logits[0]
    log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    expected = log_probs.gather(1, torch.tensor(exact.token_ids)[:, None])[:, 0]
    assert answer.log_probs == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_seed_repeats_its_sample_and_another_does_not(f32: CpuEngine) -> None:
    prompt = [4, 20, 30, 40]
    fields = {"temperature": 5.0, "end_ids": (NEVER,), "max_tokens": 30}
    first, again, other = (
        ask(f32, prompt, name, seed=seed, **fields) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.wait().token_ids == again.wait().token_ids
    assert first.token_ids != other.wait().token_ids


def test_top_k_alone_samples_and_top_p_0_is_none() -> None:
    """The same rules as TensorRT-LLM's."""
    assert request([1], top_k=5).samples
    assert request([1], temperature=1.0, top_p=0.0).samples
    assert not request([1]).samples
    assert not request([1], top_p=0.9).samples
    assert not request([1], top_k=0).samples
    assert not request([1], top_k=5, temperature=0.0).samples


def test_temperature_with_top_k_1_and_temperature_0_are_greedy(
    f32: CpuEngine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[1]
    prompt = prompt_ids(tokenizer, exact.question.messages)
    for fields in ({"temperature": 3.0, "top_k": 1}, {"temperature": 0.0}):
        answer = ask(f32, prompt, max_tokens=200, **fields).wait()
        assert answer.token_ids == exact.token_ids


def test_a_cancelled_request_ends_and_the_others_do_not(f32: CpuEngine) -> None:
    long, other = (
        ask(f32, [4, 20, 30, i], str(i), max_tokens=2000, end_ids=(NEVER,)) for i in (40, 41)
    )
    assert long.first.wait(WAIT)
    assert f32.cancel("40")
    assert long.wait().finish_reason == "cancelled"
    assert len(long.token_ids) < 2000
    assert f32.cancel("41")
    assert other.wait().finish_reason == "cancelled"
    assert not f32.cancel("40")
    again = ask(f32, [4, 20, 30, 40], "40", max_tokens=4).wait()
    assert len(again.token_ids) <= 4


def test_without_an_end_id_only_the_length_ends(
    f32: CpuEngine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[0]
    count = len(exact.token_ids) + 20
    prompt = prompt_ids(tokenizer, exact.question.messages)
    answer = ask(f32, prompt, max_tokens=count, end_ids=()).wait()
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == count
    assert answer.token_ids[: len(exact.token_ids)] == exact.token_ids


def test_closing_ends_what_runs(engine_f32: Path) -> None:
    engine = CpuEngine(engine_f32)
    running = ask(engine, [4, 20, 30], max_tokens=4000, end_ids=(NEVER,))
    assert running.first.wait(WAIT)
    engine.close()
    assert running.wait().finish_reason == "cancelled"


GOOD = request([4, 20, 30])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_ids": ()}, "the prompt is empty"),
        ({"input_ids": (4, 1536)}, "token id 1536 is outside the vocabulary of 1536"),
        ({"input_ids": (-1,)}, "token id -1 is outside"),
        ({"end_ids": (99999,)}, "token id 99999 is outside"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 4096}, "3 prompt tokens and max_tokens 4096 are more than the 4096"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"presence_penalty": 3.0}, "presence_penalty is 3.0"),
        ({"min_tokens": 65}, "min_tokens is 65"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_at_once(
    f32: CpuEngine, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(NemotronError, match=message):
        f32.submit_all([(replace(GOOD, **fields), Answer().push)])
    assert ask(f32, [4, 20, 30], max_tokens=2).wait().token_ids


def test_an_id_in_use_is_refused(f32: CpuEngine) -> None:
    running = ask(f32, [4, 20, 30], max_tokens=2000, end_ids=(NEVER,))
    with pytest.raises(NemotronError, match="'one' is running already"):
        ask(f32, [4, 20, 30])
    f32.cancel("one")
    running.wait()


def test_nothing_reports_to_the_vendor() -> None:
    import sys

    assert sys.modules["openvino_telemetry"] is None
    assert sys.modules["openvino.tools.ovc.telemetry_stub"] is not None


def test_requests_wait_for_room_in_the_kv_cache_and_one_without_hope_ends(
    engine_f32: Path, f32: CpuEngine, tmp_path: Path
) -> None:
    """512 tokens for eight requests of 153 each, and then for one of 600 alone."""
    folder = shutil.copytree(engine_f32, tmp_path / "small")
    settings = CpuEngineSettings.read(folder).model_copy(update={"kv_cache_tokens": 512})
    settings.write(folder)
    small = CpuEngine(folder)
    prompts = [[4, 20 + number, 30] for number in range(8)]
    endless = {"max_tokens": 150, "end_ids": (NEVER,)}
    try:
        in_small, in_large = (
            [ask(engine, ids, str(n), **endless) for n, ids in enumerate(prompts)]
            for engine in (small, f32)
        )
        for answer, expected in zip(in_small, in_large, strict=True):
            assert answer.wait().token_ids == expected.wait().token_ids
        for ids, length in (([4] * 500, 100), ([4] * 600, 10)):
            with pytest.raises(NemotronError, match="the KV cache has no room"):
                ask(small, ids, max_tokens=length, end_ids=(NEVER,)).wait()
            assert len(ask(small, [4, 20, 30], max_tokens=10).wait().token_ids) <= 10
    finally:
        small.close()


def test_no_request_may_be_larger_than_the_kv_cache(
    checkpoint_tp8: Path, cpu_profile: Profile, tmp_path: Path
) -> None:
    limits = cpu_profile.limits.model_copy(update={"kv_cache_tokens": 512})
    profile = cpu_profile.model_copy(update={"limits": limits})
    build_engine(checkpoint_tp8, tmp_path / "engine", profile)
    engine = CpuEngine(tmp_path / "engine")
    try:
        with pytest.raises(NemotronError, match="more than the 512 this model holds"):
            ask(engine, [4] * 500, max_tokens=13)
        assert ask(engine, [4] * 500, max_tokens=12, end_ids=(NEVER,)).wait().finish_reason
    finally:
        engine.close()


def test_logits_come_last_so_that_a_prompt_pays_for_one_of_its_tokens(
    checkpoint_tp8: Path,
) -> None:
    checkpoint = Checkpoint.open(checkpoint_tp8)
    for precision in get_args(Precision):
        (result,) = build_model(checkpoint, precision).outputs
        assert result.node.input_value(0).get_node().get_type_name() == "MatMul"
