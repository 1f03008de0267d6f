"""The CPU engine against transformers, token by token."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import get_args

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
from nemotron_core.openvino import openvino
from nemotron_core.text import Tokenizer
from nemotron_engine.adapters import load_adapter
from nemotron_engine.adapters.openvino import PACKED_STEPS
from nemotron_engine.adapters.openvino_properties import computes_in_bf16
from tests.engine.requests import NEVER, Engine, request
from tests.memory import resident
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.tiny_nemotron.reference import greedy, load_hf_model

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def f32(engine_f32: Path) -> Engine:
    return Engine(load_adapter("cpu", engine_f32))


@pytest.fixture(scope="module")
def bf16(engine_bf16: Path) -> Engine:
    return Engine(load_adapter("cpu", engine_bf16))


def exact_fraction(engine: Engine, answers: list[ExactAnswer], tokenizer: Tokenizer) -> float:
    prompts = [prompt_ids(tokenizer, exact.question.messages) for exact in answers]
    running = engine.ask_all([request(ids, max_tokens=200) for ids in prompts])
    is_exact = [
        answer.wait().token_ids == exact.token_ids
        for answer, exact in zip(running, answers, strict=True)
    ]
    return sum(is_exact) / len(is_exact)


def test_f32_is_transformers_on_every_answer(
    f32: Engine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    assert exact_fraction(f32, answers, tokenizer) == 1


def test_bf16_keeps_the_answers(
    bf16: Engine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    assert exact_fraction(bf16, answers, tokenizer) >= 0.98


@pytest.mark.parametrize("length", [200, 1000, 3500])
def test_bf16_is_near_transformers_however_long_the_prompt(bf16: Engine, length: int) -> None:
    """Computed in BF16, positions above 256 would be rounded, and the answers would differ."""
    model = load_hf_model()
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(300, model.config.vocab_size, (length,), generator=generator).tolist()
    answer = bf16.ask(ids, max_tokens=32, end_ids=[NEVER], log_probs=True).wait()
    with torch.inference_mode():
        logits = model(torch.tensor([ids + answer.token_ids[:-1]])).logits[0, length - 1 :]
    expected = logits.log_softmax(-1)
    chosen = torch.tensor(answer.token_ids)
    assert (expected.argmax(-1) == chosen).float().mean() >= 0.9
    difference = expected.gather(1, chosen[:, None])[:, 0] - torch.tensor(answer.log_probs)
    assert difference.abs().mean() < 0.05


def test_f32_is_transformers_one_request_at_a_time(
    f32: Engine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    for exact in answers[::25]:
        alone = f32.ask(prompt_ids(tokenizer, exact.question.messages), max_tokens=200).wait()
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
def golden(tmp_path_factory: pytest.TempPathFactory, cpu_profile: Profile) -> Engine:
    folder = tmp_path_factory.mktemp("golden")
    convert(GOLDEN / "tiny_zarr_tp1pp1.nemo", folder / "checkpoint", Options(Parallel(2, 2)))
    build_engine(
        folder / "checkpoint", folder / "engine", cpu_profile.model_copy(update={"dtype": "f32"})
    )
    return Engine(load_adapter("cpu", folder / "engine"))


def test_f32_is_transformers_on_random_weights_with_32_requests_joining_and_leaving(
    golden: Engine,
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
    collected = []
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        collected.append(golden.ask(prompt, max_tokens=length, end_ids=[NEVER]))
        if i % 3 == 2:  # so that the next joins in the middle
            collected[-1].begin()
    for answer, ids, length in zip(collected, expected, lengths, strict=True):
        assert answer.wait().token_ids == ids[:length]
        assert answer.finish_reason == ("stop" if NEVER in ids[:length] else "length")
    for i, (prompt, ids) in enumerate(zip(prompts[:6], expected, strict=False)):
        alone = golden.ask(prompt, max_tokens=lengths[i], end_ids=[NEVER]).wait()
        assert alone.token_ids == ids[: lengths[i]]


def test_log_probabilities_are_transformers(
    f32: Engine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[0]
    prompt = prompt_ids(tokenizer, exact.question.messages)
    answer = f32.ask(prompt, log_probs=True, max_tokens=200).wait()
    model = load_hf_model()
    round_norms(model)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + exact.token_ids])).logits[0]
    log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    expected = log_probs.gather(1, torch.tensor(exact.token_ids)[:, None])[:, 0]
    assert answer.log_probs == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_seed_repeats_its_sample_and_another_does_not(f32: Engine) -> None:
    prompt = [4, 20, 30, 40]
    fields = {"temperature": 5.0, "end_ids": [NEVER], "max_tokens": 30}
    first, again, other = (f32.ask(prompt, seed=seed, **fields) for seed in (1, 1, 2))
    assert first.wait().token_ids == again.wait().token_ids
    assert first.token_ids != other.wait().token_ids


def test_temperature_0_is_greedy_whatever_else_is_asked(
    f32: Engine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[1]
    prompt = prompt_ids(tokenizer, exact.question.messages)
    answer = f32.ask(prompt, max_tokens=200, temperature=0.0, top_k=50, top_p=0.5, seed=3).wait()
    assert answer.token_ids == exact.token_ids


def test_a_cancelled_request_ends_and_the_others_do_not(f32: Engine) -> None:
    long, other = (f32.ask([4, 20, 30, i], max_tokens=2000, end_ids=[NEVER]) for i in (40, 41))
    long.begin()
    f32.cancel(long)
    assert long.finish_reason == "cancelled"
    count = len(long.token_ids)
    for _ in range(5):
        f32.step()
    assert len(long.token_ids) == count < len(other.token_ids)
    f32.cancel(other)
    assert f32.answers[other.request.key].finish_reason == "cancelled"
    assert f32.scheduler.is_idle
    again = f32.ask([4, 20, 30, 40], max_tokens=4).wait()
    assert len(again.token_ids) <= 4


def test_without_an_end_id_only_the_length_ends(
    f32: Engine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[0]
    count = len(exact.token_ids) + 20
    prompt = prompt_ids(tokenizer, exact.question.messages)
    answer = f32.ask(prompt, max_tokens=count, end_ids=[]).wait()
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == count
    assert answer.token_ids[: len(exact.token_ids)] == exact.token_ids


def test_an_answer_ends_with_the_first_stop_sequence(
    f32: Engine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = next(exact for exact in answers if len(set(exact.token_ids)) == len(exact.token_ids))
    prompt = prompt_ids(tokenizer, exact.question.messages)
    stop = exact.token_ids[3:6]
    sequences = [[*stop[:2], NEVER], stop]
    answer = f32.ask(prompt, max_tokens=200, stop_sequences=sequences, log_probs=True).wait()
    assert answer.token_ids == exact.token_ids[:6]
    assert len(answer.log_probs) == 6
    assert answer.finish_reason == "stop"
    assert f32.ask(prompt, max_tokens=200).wait().token_ids == exact.token_ids


def test_nothing_reports_to_the_vendor() -> None:
    import sys

    assert sys.modules["openvino_telemetry"] is None
    assert sys.modules["openvino.tools.ovc.telemetry_stub"] is not None


def test_requests_wait_for_room_in_the_kv_cache_and_one_without_hope_ends(
    engine_f32: Path, f32: Engine, tmp_path: Path
) -> None:
    """512 tokens for eight requests of 153 each, and then for one of 600 alone."""
    folder = shutil.copytree(engine_f32, tmp_path / "small")
    settings = CpuEngineSettings.read(folder).model_copy(update={"kv_cache_tokens": 512})
    settings.write(folder)
    small = Engine(load_adapter("cpu", folder))
    endless = {"max_tokens": 150, "end_ids": [NEVER]}
    in_small, in_large = (
        engine.ask_all([request([4, 20 + number, 30], **endless) for number in range(8)])
        for engine in (small, f32)
    )
    for answer, expected in zip(in_small, in_large, strict=True):
        assert answer.wait().token_ids == expected.wait().token_ids
    for ids, length in (([4] * 500, 100), ([4] * 600, 10)):
        with pytest.raises(NemotronError, match="the KV cache has no room"):
            small.ask(ids, max_tokens=length, end_ids=[NEVER]).wait()
        assert len(small.ask([4, 20, 30], max_tokens=10).wait().token_ids) <= 10


def test_no_request_may_be_larger_than_the_kv_cache(
    checkpoint_tp8: Path, cpu_profile: Profile, tmp_path: Path
) -> None:
    limits = cpu_profile.limits.model_copy(update={"kv_cache_tokens": 512})
    profile = cpu_profile.model_copy(update={"limits": limits})
    build_engine(checkpoint_tp8, tmp_path / "engine", profile)
    engine = Engine(load_adapter("cpu", tmp_path / "engine"))
    with pytest.raises(NemotronError, match="more than the 512 this model holds"):
        engine.ask([4] * 500, max_tokens=13).wait()
    assert engine.ask([4] * 500, max_tokens=12, end_ids=[NEVER]).wait().finish_reason


def test_logits_come_last_so_that_a_prompt_pays_for_one_of_its_tokens(
    checkpoint_tp8: Path,
) -> None:
    checkpoint = Checkpoint.open(checkpoint_tp8)
    for precision in get_args(Precision):
        (result,) = build_model(checkpoint, precision).outputs
        assert result.node.input_value(0).get_node().get_type_name() == "MatMul"


@pytest.fixture
def folder(engine_bf16: Path, tmp_path: Path) -> Path:
    """An engine folder that no other test has open."""
    return shutil.copytree(engine_bf16, tmp_path / "engine")


def test_each_weight_is_in_memory_once_as_it_is_stored(folder: Path) -> None:
    """Packed by the plug-in; neither widened to F32 nor beside the file that it comes from."""
    graph, weights = (
        folder / name for name in (CpuEngineSettings.GRAPH_NAME, CpuEngineSettings.WEIGHTS_NAME)
    )
    hint = {"INFERENCE_PRECISION_HINT": openvino.Type.bf16}
    compiled = openvino.Core().compile_model(graph, "CPU", hint).get_runtime_model()
    weight_types = [
        node.get_rt_info()["outputPrecisions"].value
        for node in compiled.get_ordered_ops()
        if node.get_rt_info()["layerType"].value == "Const"
        and math.prod(node.output(0).shape) > 1e4
    ]
    assert len(weight_types) > 4
    # A CPU that computes in F32 keeps the matrices that its kernels cannot widen on the way in F32.
    expected = {"bf16"} if computes_in_bf16() else {"bf16", "f32"}
    assert set(weight_types) == expected
    del compiled
    engine = Engine(load_adapter("cpu", folder))
    engine.ask([4, 20, 30], end_ids=[NEVER], max_tokens=2 * PACKED_STEPS).wait()
    assert 0 < resident(weights) < weights.stat().st_size / 2


def test_an_engine_that_cannot_be_loaded_is_an_error(folder: Path) -> None:
    (folder / CpuEngineSettings.GRAPH_NAME).write_text("no graph")
    with pytest.raises(NemotronError) as caught:
        load_adapter("cpu", folder)
    assert caught.value.where == folder
