"""The CPU engine with a draft: the same answers in fewer steps."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.measurements.dropped_layers import drop_layers
from nemotron_build.engine_folder import build_engine, open_engine, reuse_or_build
from nemotron_build.profile import NGRAM, CpuProfile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from nemotron_engine.adapters import load_adapter
from tests.engine.requests import Answer, Engine, request
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.tiny_nemotron.nemo_file import NEMO

GOLDEN = Path(__file__).parents[1] / "golden"
LIMITS = {"max_batch_size": 8, "max_num_tokens": 128, "kv_cache_tokens": 1024, "max_seq_len": 512}
"""So little that prompts are computed in pieces, and that requests wait for room in the cache."""
KINDS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.5, "frequency_penalty": -0.7},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 20, "frequency_penalty": -0.5},
    {"temperature": 1.0, "min_tokens": 1},
]


@pytest.fixture(scope="module")
def small_profile(cpu_profile: CpuProfile) -> CpuProfile:
    limits = cpu_profile.limits.model_copy(update=LIMITS)
    return cpu_profile.model_copy(update={"dtype": "f32", "limits": limits})


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory, small_profile: CpuProfile) -> Path:
    """An engine of the tiny model without its last layer."""
    folder = tmp_path_factory.mktemp("draft")
    convert(NEMO, folder / "whole", Options(Parallel(1, 1), Format.HF))
    drop_layers(folder / "whole", folder / "hf", 1)
    convert(folder / "hf", folder / "checkpoint", Options(Parallel(1, 1)))
    build_engine(folder / "checkpoint", folder / "engine", small_profile)
    return folder / "engine"


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_tp8: Path, small_profile: CpuProfile
) -> Engine:
    folder = tmp_path_factory.mktemp("plain") / "engine"
    build_engine(checkpoint_tp8, folder, small_profile)
    return Engine(load_adapter("cpu", folder))


@pytest.fixture(scope="module", params=["model", NGRAM])
def drafted(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint_tp8: Path,
    small_profile: CpuProfile,
    draft: Path,
) -> Engine:
    folder = tmp_path_factory.mktemp("drafted") / "engine"
    value = NGRAM if request.param == NGRAM else str(draft)
    profile = small_profile.model_copy(update={"draft": value})
    build_engine(checkpoint_tp8, folder, profile)
    return Engine(load_adapter("cpu", folder))


def test_every_greedy_answer_is_exact(
    drafted: Engine, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    """The answers come from transformers."""
    before = drafted.scheduler.load()
    prompts = [prompt_ids(tokenizer, exact.question.messages) for exact in answers[::4]]
    running = drafted.ask_all([request(ids, max_tokens=200) for ids in prompts])
    for answer, exact in zip(running, answers[::4], strict=True):
        assert answer.wait().token_ids == exact.token_ids
    load = drafted.scheduler.load()
    steps = load.draft_steps - before.draft_steps
    accepted = load.draft_accepted - before.draft_accepted
    first_tokens = len(running)
    assert steps + accepted + first_tokens == load.generated_tokens - before.generated_tokens
    assert steps < steps + accepted <= 5 * steps
    assert accepted <= load.draft_proposed - before.draft_proposed <= 4 * steps


def random_requests(count: int) -> list[tuple[list[int], dict[str, Any]]]:
    """Prompts of every length, repetitive ones and ones that begin alike, with all settings."""
    generator = random.Random(7)
    common = [generator.randrange(6, 1400) for _ in range(150)]
    requests = []
    for number in range(count):
        ids = [generator.randrange(6, 1400) for _ in range(generator.choice([1, 3, 31, 64, 200]))]
        if number % 3 == 0:
            ids += ids[: len(ids) // 2]
        elif number % 3 == 1:
            ids = common[: generator.choice([32, 96, 150])] + ids
        fields = {
            **KINDS[number % len(KINDS)],
            "max_tokens": generator.choice([1, 2, 3, 20, 64]),
            "seed": number,
            "log_probs": number % 2 == 0,
        }
        requests.append((ids, fields))
    return requests


def run(engine: Engine, requests: list[tuple[list[int], dict[str, Any]]]) -> list[Answer]:
    """Return the answers; most requests begin while others run."""
    answers = []
    for number, (ids, fields) in enumerate(requests):
        answers.append(engine.ask(ids, **fields))
        if number % 4 == 3:
            answers[-2].begin()
    return [answer.wait() for answer in answers]


def test_all_answers_are_those_without_a_draft(plain: Engine, drafted: Engine) -> None:
    """Sampled ones too: a seed gives the same sample, so the distribution is the same."""
    requests = random_requests(60)
    for one, other in zip(run(plain, requests), run(drafted, requests), strict=True):
        assert other.token_ids == one.token_ids
        assert other.finish_reason == one.finish_reason
        assert other.log_probs == pytest.approx(one.log_probs, abs=2e-3)


def test_cancelled_requests_leave_the_others_as_they_are(plain: Engine, drafted: Engine) -> None:
    requests = [(ids, {**fields, "max_tokens": 40}) for ids, fields in random_requests(24)]
    answers = [drafted.ask(ids, **fields) for ids, fields in requests]
    answers[0].begin()
    drafted.scheduler.cancel([answer.request.key for answer in answers[::3]])
    expected = run(plain, requests)
    for number, (one, other) in enumerate(zip(expected, answers, strict=True)):
        other.wait()
        if number % 3:
            assert other.token_ids == one.token_ids
        else:
            assert other.finish_reason == "cancelled"
            assert other.token_ids == one.token_ids[: len(other.token_ids)]
    assert drafted.scheduler.is_idle


def test_the_longest_request(plain: Engine, drafted: Engine) -> None:
    """It is computed in pieces, and takes every position of the model."""
    ids = [6 + number * 7 % 1400 for number in range(400)]
    length = plain.scheduler._settings.max_seq_len - len(ids)
    answers = [engine.ask(ids, max_tokens=length, end_ids=[]).wait() for engine in (plain, drafted)]
    assert len(answers[0].token_ids) == length
    assert answers[1].token_ids == answers[0].token_ids


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"min_tokens": 2}, "min_tokens and the draft of this engine do not go together"),
        ({"guide_type": "json"}, "a guide and the draft of this engine do not go together"),
    ],
)
def test_what_a_draft_does_not_go_with_is_refused(
    fields: dict[str, Any], error: str, drafted: Engine
) -> None:
    with pytest.raises(NemotronError, match=error):
        drafted.ask([7, 8, 9], **fields).wait()


def test_alternatives_go_with_a_draft(plain: Engine, drafted: Engine) -> None:
    ids = list(range(100, 130))
    one, other = (
        engine.ask(ids, max_tokens=1, prompt_log_probs=2).wait() for engine in (plain, drafted)
    )
    assert one.token_ids == other.token_ids


def test_a_draft_with_another_vocabulary_is_refused_when_the_engine_is_built(
    checkpoint_tp8: Path, small_profile: CpuProfile, tmp_path: Path
) -> None:
    convert(GOLDEN / "tiny_zarr_tp1pp1.nemo", tmp_path / "other", Options(Parallel(1, 1)))
    build_engine(tmp_path / "other", tmp_path / "draft", small_profile)
    profile = small_profile.model_copy(update={"draft": str(tmp_path / "draft")})
    with pytest.raises(NemotronError, match="another vocabulary than the checkpoint"):
        build_engine(checkpoint_tp8, tmp_path / "engine", profile)


def test_a_draft_is_checked_again_when_the_engine_starts(
    checkpoint_tp8: Path, small_profile: CpuProfile, draft: Path, tmp_path: Path
) -> None:
    shutil.copytree(draft, tmp_path / "draft")
    profile = small_profile.model_copy(update={"draft": str(tmp_path / "draft")})
    build_engine(checkpoint_tp8, tmp_path / "engine", profile)
    assert open_engine(tmp_path / "engine").profile == profile
    reuse_or_build(checkpoint_tp8, tmp_path / "engine", profile)
    with (tmp_path / "draft" / "tokenizer.model").open("ab") as file:
        file.write(b"more")
    with pytest.raises(NemotronError, match="another vocabulary than the engine"):
        load_adapter("cpu", tmp_path / "engine")
    shutil.rmtree(tmp_path / "draft")
    with pytest.raises(NemotronError, match="no engine with a vocabulary"):
        load_adapter("cpu", tmp_path / "engine")
