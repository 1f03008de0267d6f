"""A reward model behind a real vLLM's pooling, against transformers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import Profile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.reward import ATTRIBUTES, RewardHead
from nemotron_core.text import Tokenizer
from nemotron_engine.protocol import KEY_BYTES, Request
from tests.engine.process import Connection, engine_process
from tests.engine.requests import request
from tests.reward_fixtures import CASES
from tests.tiny_reward.nemo_file import pack_reward
from tests.vllm.fixtures import PYTHON
from tests.vllm.wide_heads import widen_heads

ROUNDING = 0.05
"""Largest difference that BF16 makes: the tiny head has larger weights than the golden one."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny reward model, with heads that vLLM computes on a CPU."""
    folder = tmp_path_factory.mktemp("reward")
    nemo = pack_reward(folder / "reward.nemo")
    convert(nemo, folder / "hf", Options(Parallel(1, 1), format=Format.HF))
    widen_heads(folder / "hf", folder / "hf64", "model-00001-of-00002.safetensors")
    return folder / "hf64"


@pytest.fixture(scope="module")
def connection(
    checkpoint: Path, vllm_profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Connection]:
    engine = checkpoint.with_name("engine")
    assert build_engine(checkpoint, engine, vllm_profile).kind == "reward"
    socket = tmp_path_factory.mktemp("socket") / "engine.sock"
    with engine_process(engine, "vllm", path=socket, python=PYTHON), Connection(socket) as client:
        yield client


def scored(ids: list[int]) -> Request:
    return Request(key=secrets.token_bytes(KEY_BYTES), input_ids=ids, max_tokens=0, scores=True)


def test_scores_are_those_of_transformers_and_the_bias(
    connection: Connection, checkpoint: Path
) -> None:
    tokenizer = Tokenizer(checkpoint / "tokenizer.model")
    bias = RewardHead.read(checkpoint).bias
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    requests = [scored(tokenizer.encode_scored(case["messages"])) for case in CASES]
    connection.ask(*requests)
    for sent in requests:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([sent.input_ids])).logits[0].numpy()
        scores = np.array(connection.whole(sent).scores)
        assert np.abs(scores - (logits + bias)).max() < ROUNDING


def test_it_says_what_it_is_and_refuses_text(connection: Connection) -> None:
    capabilities = connection.hello().capabilities
    assert capabilities.kind == "reward"
    assert tuple(capabilities.attributes) == ATTRIBUTES
    sent = request([5], max_tokens=4)
    connection.ask(sent)
    assert "a reward model" in connection.whole(sent).error
