"""The rules of drafts that need no library's step: what is refused, what is counted, who begins."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nemotron_build.profile import NGRAM, load_profile, profile_text
from nemotron_core.engine_settings import CpuEngineSettings, DraftSettings, EngineSettings
from nemotron_core.errors import NemotronError
from nemotron_engine.adapters.openvino import kv_blocks
from nemotron_engine.adapters.openvino_draft import Admission
from nemotron_engine.protocol import FEATURES, Capabilities, Request
from nemotron_engine.request import check_request
from tests.engine.fake_adapter import FakeAdapter
from tests.engine.requests import Engine

DRAFT = DraftSettings(engine=None, tokens=4)
LIMITS: dict[str, Any] = {
    "vocab_size": 1536,
    "max_seq_len": 1024,
    "max_batch_size": 3,
    "max_num_tokens": 128,
    "max_queue_size": 8,
    "request_seconds": 60,
}
SETTINGS = EngineSettings(**LIMITS)
CAPABILITIES = Capabilities(
    features=list(FEATURES),
    guide_types=["json"],
    max_log_probs=5,
    draft_tokens=4,
    without=["guide_type", "min_tokens", "log_probs", "prompt_log_probs", "bias"],
)


def request(prompt: int, max_tokens: int = 20, **fields: Any) -> Request:
    key = secrets.token_bytes(16)
    return Request(key=key, input_ids=[9] * prompt, max_tokens=max_tokens, **fields)


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"guide_type": "json"}, "a guide"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"log_probs": True}, "log-probabilities"),
        ({"prompt_log_probs": 0}, "log-probabilities"),
        ({"bias": {7: 1.0}}, "a bias"),
    ],
)
def test_what_does_not_go_with_a_draft_is_named(fields: dict[str, Any], label: str) -> None:
    asked = request(3, **fields)
    error = f"{label} and the draft of this engine do not go together.*built without `draft`"
    with pytest.raises(NemotronError, match=error):
        check_request(asked, SETTINGS, CAPABILITIES)
    check_request(asked, SETTINGS, Capabilities(features=list(FEATURES), guide_types=["json"]))


def test_values_that_change_nothing_go_with_a_draft() -> None:
    check_request(request(3, min_tokens=1, temperature=0.5, seed=3), SETTINGS, CAPABILITIES)


class DraftAdapter(FakeAdapter):
    capabilities = Capabilities(draft_tokens=4)


def test_the_counts_of_steps_and_of_tokens_that_were_right() -> None:
    adapter = DraftAdapter()
    engine = Engine(adapter)
    answer = engine.ask([9], max_tokens=8)
    engine.step()  # the first token is the model's own
    adapter.tokens_per_step = 3
    engine.step()
    engine.step()  # the fifth to the seventh
    assert len(answer.token_ids) == 7
    load = engine.scheduler.load()
    assert (load.draft_steps, load.draft_accepted, load.draft_proposed) == (2, 4, 4 + 3)
    answer.wait()
    load = engine.scheduler.load()
    assert (load.draft_steps, load.draft_accepted, load.draft_proposed) == (3, 4, 7)


def test_nothing_is_counted_without_a_draft() -> None:
    engine = Engine(FakeAdapter())
    engine.ask([9], max_tokens=8).wait()
    assert engine.scheduler.load().draft_steps == 0


def admission(draft: DraftSettings | None = DRAFT, kv_cache_tokens: int = 1024) -> Admission:
    settings = CpuEngineSettings(
        dtype="f32", kv_cache_tokens=kv_cache_tokens, draft=draft, **LIMITS
    )
    return Admission(settings, kv_blocks(settings))


def begin(gate: Admission, *requests: Request) -> list[Request]:
    for one in requests:
        gate.ask(one)
    return list(gate.begin())


def test_without_a_draft_every_request_begins() -> None:
    requests = [request(1000) for _ in range(8)]
    assert begin(admission(None), *requests) == requests


def test_prompts_of_one_step_fit_into_it() -> None:
    gate = admission()
    first, second, third = request(60), request(60), request(20)
    assert begin(gate, first, second, third) == [first, second]
    assert begin(gate) == []
    gate.generated(first.key, is_whole=False)  # its next steps have five tokens
    assert begin(gate) == [third]


def test_a_prompt_that_is_computed_in_pieces_is_alone() -> None:
    gate = admission()
    long, short = request(500), request(3)
    assert begin(gate, long, short) == [long]
    gate.stepped()
    assert begin(gate) == []
    gate.generated(long.key, is_whole=False)
    assert begin(gate) == [short]
    later = request(500)
    assert begin(gate, later) == []
    gate.generated(short.key, is_whole=True)
    assert begin(gate) == []
    gate.generated(long.key, is_whole=True)
    assert begin(gate) == [later]


def test_whole_answers_fit_into_the_cache() -> None:
    gate = admission(kv_cache_tokens=256)  # ten blocks with the two to spare
    first, second = request(10, 100), request(10, 100)  # four blocks and two each
    assert begin(gate, first, second) == [first]
    gate.generated(first.key, is_whole=True)
    assert begin(gate) == [second]


def test_a_cancelled_request_keeps_its_place_for_one_step() -> None:
    gate = admission()
    long, short, waiting = request(500), request(3), request(4)
    begin(gate, long, short, waiting)
    gate.cancel(waiting.key)
    gate.cancel(long.key)
    assert begin(gate) == []
    gate.stepped()
    assert begin(gate) == [short]
    assert begin(gate) == []


def test_no_more_requests_begin_than_the_engine_computes_at_once() -> None:
    gate = admission()
    requests = [request(1, 1) for _ in range(5)]
    assert begin(gate, *requests) == requests[:3]


@pytest.mark.parametrize(
    ("profile", "lines", "error"),
    [
        ("laptop", "draft_tokens: 17", "draft_tokens: Input should be less than"),
        ("h100-fp8-tp8", "draft: ngram", "draft: Extra inputs are not permitted"),
        ("one-gpu", "draft: ngram\nlora: {max_adapters: 2}", "draft and lora do not go together"),
    ],
)
def test_profiles_that_no_engine_can_serve(
    profile: str, lines: str, error: str, tmp_path: Path
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(f"{profile_text(profile)}\n{lines}\n")
    with pytest.raises(NemotronError, match=error):
        load_profile(str(path))


def test_a_profile_with_a_draft(tmp_path: Path) -> None:
    profile = load_profile("laptop").model_copy(update={"draft": NGRAM})
    assert profile.draft_settings == DRAFT
    profile = profile.model_copy(update={"draft": "/engines/small", "draft_tokens": 2})
    assert profile.draft_settings == DraftSettings(engine=Path("/engines/small"), tokens=2)
    with pytest.raises(ValidationError):
        DraftSettings(engine=None, tokens=0)
