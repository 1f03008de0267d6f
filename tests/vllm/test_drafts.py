"""vLLM with a draft: the same greedy answers in fewer steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.measurements.dropped_layers import drop_layers
from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import NGRAM, VllmProfile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.text import Tokenizer
from tests.engine.process import Connection, engine_process
from tests.engine.requests import request
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.tiny_nemotron.nemo_file import NEMO
from tests.tiny_nemotron.reference import load_hf_model
from tests.vllm.fixtures import PYTHON
from tests.vllm.test_engine import PROMPT, SCHEMA
from tests.vllm.wide_heads import widen_heads


@pytest.fixture(scope="module")
def plain_profile(vllm_profile: VllmProfile) -> VllmProfile:
    return vllm_profile.model_copy(update={"lora": None})


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory, plain_profile: VllmProfile) -> Path:
    """An engine of the tiny model with its first layer alone."""
    folder = tmp_path_factory.mktemp("draft")
    options = Options(Parallel(1, 1), format=Format.HF)
    convert(NEMO, folder / "whole", options)
    drop_layers(folder / "whole", folder / "first", 1)
    convert(folder / "first", folder / "hf", options)
    widen_heads(folder / "hf", folder / "hf64")
    build_engine(folder / "hf64", folder / "engine", plain_profile)
    return folder / "engine"


@pytest.fixture(scope="module", params=["model", NGRAM])
def client(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint_hf64: Path,
    plain_profile: VllmProfile,
    draft: Path,
) -> Iterator[Connection]:
    folder = tmp_path_factory.mktemp("drafted") / "engine"
    value = NGRAM if request.param == NGRAM else str(draft)
    build_engine(checkpoint_hf64, folder, plain_profile.model_copy(update={"draft": value}))
    folder.chmod(0o700)
    with engine_process(folder, "vllm", python=PYTHON) as (_, path), Connection(path) as connection:
        yield connection


def test_greedy_answers_are_exact_in_fewer_steps(
    client: Connection, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    assert client.hello().capabilities.draft_tokens == 4
    before = client.load()
    asked = [
        request(
            list(prompt_ids(tokenizer, exact.question.messages)), max_tokens=200, end_ids=[5, 3]
        )
        for exact in answers[::3]
    ]
    client.ask(*asked)
    whole = [client.whole(one) for one in asked]
    exact_count = sum(
        last.token_ids == list(exact.token_ids)
        for last, exact in zip(whole, answers[::3], strict=True)
    )
    assert exact_count >= 0.98 * len(asked)
    load = client.load()
    steps = load.draft_steps - before.draft_steps
    accepted = load.draft_accepted - before.draft_accepted
    assert 0 < accepted <= load.draft_proposed - before.draft_proposed <= 4 * steps
    assert steps + accepted + len(asked) == load.generated_tokens - before.generated_tokens


def test_what_goes_with_a_draft(client: Connection) -> None:
    guided = request(
        PROMPT, max_tokens=60, end_ids=[5, 3], guide_type="json_schema", guide=json.dumps(SCHEMA)
    )
    long = request(PROMPT, max_tokens=40, end_ids=list(range(6, 1000)), min_tokens=30)
    logged = request(PROMPT, max_tokens=20, end_ids=[], log_probs=True)
    client.ask(guided, long, logged)
    assert client.whole(guided).finish_reason in ("stop", "length")
    assert not set(client.whole(long).token_ids[:30]) & set(long.end_ids)
    answer = client.whole(logged)
    ids = torch.tensor([[*PROMPT, *answer.token_ids]])
    with torch.inference_mode():
        logits = load_hf_model()(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    expected = logits.gather(1, ids[0, len(PROMPT) :, None])[:, 0]
    actual = [value for chunk in client.chunks(logged) for value in chunk.log_probs]
    assert (torch.tensor(actual) - expected).abs().max() < 0.15


@pytest.mark.parametrize(
    ("fields", "label"),
    [({"bias": {7: 1.0}}, "a bias"), ({"temperature": 0.7}, "a temperature above 0")],
)
def test_what_does_not_is_named(fields: dict[str, Any], label: str, client: Connection) -> None:
    asked = request(PROMPT, **fields)
    client.ask(asked)
    last = client.whole(asked)
    assert last.finish_reason == "error"
    assert f"{label} and the draft of this engine do not go together" in last.error
