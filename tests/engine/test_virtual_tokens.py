"""The virtual tokens of a P-tuning on the CPU lane, against transformers with `inputs_embeds`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import NemotronForCausalLM

from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import Profile, load_profile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_core.errors import NemotronError
from nemotron_engine.adapters import load_adapter
from nemotron_engine.adapters.openvino import OpenVinoAdapter
from tests.convert.adapters import BASE, CUSTOM
from tests.convert.test_peft import PROMPT
from tests.engine.requests import NEVER, Engine, request
from tests.engine.test_openvino import round_norms
from tests.engine.test_scoring import score
from tests.tiny_nemotron.reference import load_hf_model

PROMPT_TUNING = CUSTOM / "ptuning_tp2.nemo"
VECTORS = torch.from_numpy(np.load(CUSTOM / "ptuning_table.npz")["inference_table"])
"""[10, 256], computed apart from this project."""
COUNT = len(VECTORS)
TOP5 = {1348: 19.7974, 1296: 13.3443, 208: 11.9736, 1353: 11.2936, 1213: 11.2362}
"""Largest logits after the virtual tokens and PROMPT, computed by others."""
SAME = 1e-3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompt") / "checkpoint"
    convert(BASE, folder, Options(Parallel(2, 1), adapters=(PROMPT_TUNING,)))
    return folder


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, cpu_profile: Profile) -> OpenVinoAdapter:
    folder = checkpoint.with_name("engine")
    record = build_engine(checkpoint, folder, cpu_profile.model_copy(update={"dtype": "f32"}))
    assert record.max_seq_len == 4096 - COUNT
    adapter = load_adapter("cpu", folder)
    assert isinstance(adapter, OpenVinoAdapter)
    return adapter


@pytest.fixture(scope="module")
def engine(adapter: OpenVinoAdapter) -> Engine:
    return Engine(adapter)


@pytest.fixture(scope="module")
def reference() -> NemotronForCausalLM:
    """Return transformers' model with the checkpoint's norms."""
    model = load_hf_model()
    round_norms(model)
    return model


@torch.inference_mode()
def log_probs(model: NemotronForCausalLM, ids: list[int]) -> Tensor:
    """Return [T, V]: what comes after each of `ids` with the virtual tokens before them."""
    words = model.get_input_embeddings()(torch.tensor(ids))
    states = torch.cat([VECTORS, words])[None]
    logits: Tensor = model(inputs_embeds=states).logits[0, COUNT:]
    return logits.log_softmax(-1)


def random_ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(300, 1400, (count,), generator=generator).tolist()
    return ids


def test_the_logits_of_others(reference: NemotronForCausalLM) -> None:
    """So the reference of this file puts the vectors where others do."""
    model = load_hf_model()
    with torch.inference_mode():
        words = model.get_input_embeddings()(torch.tensor(PROMPT))
        logits = model(inputs_embeds=torch.cat([VECTORS, words])[None]).logits[0, -1]
    for token, expected in TOP5.items():
        assert float(logits[token]) == pytest.approx(expected, abs=2e-4)


def test_answers_are_those_of_transformers(engine: Engine, reference: NemotronForCausalLM) -> None:
    """Computed together; some prompts fill several blocks of the KV cache."""
    prompts = [PROMPT, *(random_ids(length, length) for length in (1, 22, 23, 90, 300))]
    fields = {"max_tokens": 12, "end_ids": [NEVER], "log_probs": True}
    running = engine.ask_all([request(ids, **fields) for ids in prompts])
    for answer, ids in zip(running, prompts, strict=True):
        tokens = answer.wait().token_ids
        expected = log_probs(reference, ids + tokens[:-1])[len(ids) - 1 :]
        assert tokens == expected.argmax(-1).tolist()
        own = expected.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert answer.log_probs == pytest.approx(own.tolist(), abs=SAME)
        again = engine.ask(ids, **fields).wait()  # from the cache of prefixes
        assert again.token_ids == tokens


def test_they_change_what_the_model_says(engine: Engine, engine_f32: Path) -> None:
    plain = Engine(load_adapter("cpu", engine_f32))
    ids = random_ids(40, 40)
    with_them, without = (score(one, ids, prompt_log_probs=0) for one in (engine, plain))
    own = [
        np.array([entries[0][1] for entries in chunk.prompt_log_probs[1:]])
        for chunk in (with_them, without)
    ]
    assert np.abs(own[0] - own[1]).max() > 100 * SAME


@pytest.mark.parametrize("length", [1, 2, 40, 513, 1100])
def test_scored_prompts_do_not_show_them(
    engine: Engine, reference: NemotronForCausalLM, length: int
) -> None:
    ids = random_ids(length, length)
    expected = log_probs(reference, ids)
    chunk = score(engine, ids, prompt_log_probs=3, top_log_probs=2)
    assert chunk.prompt_log_probs[0] == []
    assert len(chunk.prompt_log_probs) == length
    for position, entries in enumerate(chunk.prompt_log_probs[1:]):
        row = expected[position]
        assert entries[0] == (ids[position + 1], pytest.approx(float(row[entries[0][0]]), abs=SAME))
        best = [value for _, value in entries[1:]]
        assert best == pytest.approx(row.topk(3).values.tolist(), abs=SAME)
    assert chunk.top_log_probs[0][0][1] == pytest.approx(float(expected[-1].max()), abs=SAME)


def test_they_count_in_the_length_and_not_in_the_prompt(engine: Engine) -> None:
    room = 4096 - COUNT
    with pytest.raises(NemotronError, match=f"more than the {room} this model holds"):
        engine.ask([5] * (room - 4), max_tokens=5).wait()
    before = engine.scheduler.load().prompt_tokens
    answer = engine.ask([5] * (room - 4), max_tokens=4, end_ids=[NEVER]).wait()
    assert (len(answer.token_ids), answer.finish_reason) == (4, "length")
    assert engine.scheduler.load().prompt_tokens == before + room - 4


def test_nobody_can_send_one(engine: Engine, adapter: OpenVinoAdapter) -> None:
    first = adapter.settings.vocab_size
    with pytest.raises(NemotronError, match=f"{first} is outside the vocabulary"):
        engine.ask([5, first], max_tokens=1).wait()


def test_a_repetition_penalty_is_refused(engine: Engine) -> None:
    """The library would look for their logits, and end for everyone."""
    with pytest.raises(NemotronError, match=r"no repetition penalty.*\[repetition_penalty\]"):
        engine.ask(PROMPT, repetition_penalty=1.2).wait()
    penalties = {"presence_penalty": 0.5, "frequency_penalty": 0.5}
    assert engine.ask(PROMPT, max_tokens=2, end_ids=[NEVER], **penalties).wait().token_ids


def test_quantized_weights(checkpoint: Path, cpu_profile: Profile, tmp_path: Path) -> None:
    """The vectors stay as they are."""
    profile = cpu_profile.model_copy(update={"weights": "int8"})
    build_engine(checkpoint, tmp_path / "engine", profile)
    small = Engine(load_adapter("cpu", tmp_path / "engine"))
    answer = small.ask(PROMPT, max_tokens=1, end_ids=[NEVER]).wait()
    assert answer.token_ids == [max(TOP5, key=TOP5.__getitem__)]


@pytest.mark.parametrize("name", ["h100-bf16-tp8-pp2", "h100-fp8-tp8-pytorch", "h100-fp8-tp8-vllm"])
def test_other_lanes_refuse_them(name: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"10 virtual tokens of a P-tuning, which the lane \w+"):
        build_engine(checkpoint, tmp_path / "engine", load_profile(name))


def test_sequences_without_room(checkpoint: Path, cpu_profile: Profile, tmp_path: Path) -> None:
    limits = cpu_profile.limits.model_copy(update={"max_seq_len": COUNT + 1})
    profile = cpu_profile.model_copy(update={"limits": limits})
    with pytest.raises(NemotronError, match="10 virtual tokens leave no room in sequences of 11"):
        build_engine(checkpoint, tmp_path / "engine", profile)


def test_a_draft_does_not_know_them(checkpoint: Path, cpu_profile: Profile, tmp_path: Path) -> None:
    profile = cpu_profile.model_copy(update={"draft": "ngram"})
    with pytest.raises(NemotronError, match=r"virtual tokens .* and a draft do not go together"):
        build_engine(checkpoint, tmp_path / "engine", profile)
