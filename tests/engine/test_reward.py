"""The CPU lane's engine of a reward model, against scores that were computed independently."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
import pytest
import torch

from nemotron_build.engine_folder import build_engine, open_engine
from nemotron_build.profile import Profile, load_profile
from nemotron_core.errors import NemotronError
from nemotron_core.reward import HEAD_NAME, RewardHead
from nemotron_core.text import Message, Tokenizer
from nemotron_core.text.reward_prompt import render_scored, scored_turns
from nemotron_engine.adapters import load_adapter
from nemotron_engine.adapters.adapter import Adapter
from nemotron_engine.adapters.reward import choose_batch
from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import KEY_BYTES, Chunk, Request
from nemotron_engine.scheduler import Scheduler
from tests.reward_fixtures import BF16_ERROR, CASES, EXPECTED, F32_ERROR, REWARD
from tests.tiny_nemotron.reference import load_hf_model
from tests.tiny_reward.make import TESTED, VERBOSITY, conversations, verbosity


def scored(ids: list[int], **fields: object) -> Request:
    defaults = {"key": secrets.token_bytes(KEY_BYTES), "max_tokens": 0, "scores": True}
    return Request(input_ids=ids, **(defaults | fields))  # type: ignore[arg-type]


def ask(adapter: Adapter, *requests: Request) -> dict[bytes, Chunk]:
    """Return the last chunk of each request, all of which are asked together."""
    scheduler, outbox = Scheduler(adapter), Outbox()
    chunks: dict[bytes, Chunk] = {}
    scheduler.ask(requests, outbox)
    while len(chunks) < len(requests):
        chunks |= {chunk.key: chunk for chunk in outbox.take()}
        if not scheduler.is_idle:
            scheduler.collect()
    assert scheduler.is_idle
    return chunks


@pytest.fixture(scope="module")
def adapter(engine_reward: Path) -> Adapter:
    return load_adapter("cpu", engine_reward)


def test_the_prompt_is_the_one_of_the_model(checkpoint_reward: Path) -> None:
    tokenizer = Tokenizer(checkpoint_reward / "tokenizer.model")
    for case in CASES:
        assert render_scored(case["messages"]) == case["text"]
        assert tokenizer.encode_scored(case["messages"]) == case["token_ids"]
    spoken = "<extra_id_1>User"
    answer: list[Message] = [{"role": "assistant", "content": spoken}]
    ids = tokenizer.encode_scored(answer)
    assert ids.count(5) == 1  # the turn's own
    assert ids[-1] == tokenizer.id_of("<extra_id_2>")


def test_every_turn_of_the_assistant_can_be_scored() -> None:
    messages = CASES[1]["messages"]
    assert scored_turns(messages, "last") == [messages]
    assert scored_turns(messages, "all") == [messages[:2], messages]
    with pytest.raises(NemotronError, match=r"turns is 'some'.*all or last"):
        scored_turns(messages, "some")
    with pytest.raises(NemotronError, match=r"last message is from 'user' \[messages\[2\]\]"):
        scored_turns(messages[:3], "last")


def test_scores_of_conversations_that_are_computed_together(adapter: Adapter) -> None:
    requests = [scored(case["token_ids"]) for case in CASES]
    chunks = ask(adapter, *requests)
    for request, case in zip(requests, CASES, strict=True):
        chunk = chunks[request.key]
        assert (chunk.finish_reason, chunk.token_ids) == ("stop", [])
        assert np.abs(np.array(chunk.scores) - case["scores"]).max() < F32_ERROR
        reward = np.dot(chunk.scores, adapter.capabilities.weights)
        assert abs(reward - case["reward"]) < F32_ERROR
    assert adapter.capabilities.attributes == EXPECTED["attributes"]
    assert adapter.capabilities.kind == "reward"


def test_scores_are_those_of_transformers(adapter: Adapter, checkpoint_reward: Path) -> None:
    """Also the norms are those of the source, which a text model's checkpoint rounds."""
    model = load_hf_model(REWARD)
    head = RewardHead.read(checkpoint_reward)
    requests = [scored(case["token_ids"]) for case in CASES]
    chunks = ask(adapter, *requests)
    for request in requests:
        with torch.inference_mode():
            states = model.model(input_ids=torch.tensor([request.input_ids])).last_hidden_state
        expected = states[0, -1].numpy() @ head.weight.T + head.bias
        assert np.abs(np.array(chunks[request.key].scores) - expected).max() < 1e-5


def test_scores_in_bf16(checkpoint_reward: Path, cpu_profile: Profile, tmp_path: Path) -> None:
    record = build_engine(checkpoint_reward, tmp_path / "engine", cpu_profile)
    assert record.kind == open_engine(tmp_path / "engine").kind == "reward"
    assert HEAD_NAME in record.files
    engine = load_adapter("cpu", tmp_path / "engine")
    requests = [scored(case["token_ids"]) for case in CASES]
    chunks = ask(engine, *requests)
    for request, case in zip(requests, CASES, strict=True):
        assert np.abs(np.array(chunks[request.key].scores) - case["scores"]).max() < BF16_ERROR


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (scored([5] * 4097), "4097 tokens are more than the 4096 this model holds.*never cut"),
        (scored([5], max_tokens=1), "max_tokens is 1: ask for 0"),
        (scored([5], scores=False, max_tokens=8), "a reward model: it scores conversations and"),
        (scored([]), "the prompt is empty"),
    ],
)
def test_what_is_refused(request_: Request, error: str, adapter: Adapter) -> None:
    (chunk,) = ask(adapter, request_).values()
    with pytest.raises(NemotronError, match=error):
        raise chunk.failure()


def test_a_conversation_of_the_whole_length(adapter: Adapter) -> None:
    (chunk,) = ask(adapter, scored([5] * 4096)).values()
    assert len(chunk.scores) == len(EXPECTED["attributes"])


def test_an_engine_that_generates_gives_no_scores(engine_f32: Path) -> None:
    (chunk,) = ask(load_adapter("cpu", engine_f32), scored([5])).values()
    with pytest.raises(NemotronError, match="generates text and gives no scores"):
        raise chunk.failure()


def test_a_cancelled_request_is_not_computed(adapter: Adapter) -> None:
    scheduler, outbox = Scheduler(adapter), Outbox()
    requests = [scored(case["token_ids"]) for case in CASES[:2]]
    scheduler.ask(requests, outbox)
    scheduler.cancel([requests[0].key])
    scheduler.collect()
    chunks = {chunk.key: chunk for chunk in outbox.take()}
    assert chunks[requests[0].key].finish_reason == "cancelled"
    assert chunks[requests[1].key].scores
    assert scheduler.is_idle
    assert scheduler.load().steps == 1


def test_the_oldest_request_gets_those_of_its_length_for_company() -> None:
    oldest, *others = [scored([5] * length) for length in (100, 900, 110, 4000, 90, 100)]
    batch = choose_batch([oldest, *others], max_tokens=440, max_count=64)
    assert [len(request.input_ids) for request in batch] == [100, 100, 110, 90]
    assert choose_batch([oldest, *others], 440, max_count=2)[0] is oldest
    assert len(choose_batch([oldest, *others], 440, max_count=2)) == 2
    long = [scored([5] * 4000), oldest]
    assert choose_batch(long, max_tokens=2048, max_count=64) == long[:1]


@pytest.mark.parametrize("name", ["h100-bf16-tp8-pp2", "h100-fp8-tp8-pytorch"])
def test_a_lane_without_rewards_says_so(name: str, checkpoint_reward: Path, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"a reward model, which the lane \w+ does not serve"):
        build_engine(checkpoint_reward, tmp_path / "engine", load_profile(name))


@pytest.mark.slow
def test_a_trained_attribute_says_how_long_an_answer_is(engine_tiny_reward: Path) -> None:
    """On dialogues, and beginnings of them, that its head was not trained on."""
    unseen = [messages for number, messages in conversations() if number % TESTED == 0]
    tokenizer = Tokenizer(engine_tiny_reward / "tokenizer.model")
    requests = [scored(tokenizer.encode_scored(messages)) for messages in unseen]
    chunks = ask(load_adapter("cpu", engine_tiny_reward), *requests)
    scores = [chunks[request.key].scores[VERBOSITY] for request in requests]
    lengths = [verbosity(messages[-1]["content"]) for messages in unseen]
    assert np.corrcoef(scores, lengths)[0, 1] > 0.6
