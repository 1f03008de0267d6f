"""A reward engine under the real Triton and the gateway, asked by other people's clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from nemotron_build.profile import Profile
from nemotron_serve.model_server import ModelServer
from tests.conftest import free_ports
from tests.data.synthesis import recipe, rows, run
from tests.gateway.process import Running, running
from tests.reward_fixtures import CASES, F32_ERROR
from tests.serve.wire import post
from tests.waiting import until

CHAT = "/v1/chat/completions"
SCORED = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


@pytest.fixture(scope="module")
def reward(engine_reward: Path, cpu_profile: Profile) -> Iterator[ModelServer]:
    with ModelServer(engine_reward, free_ports(cpu_profile)) as server:
        until(server.has_answered)
        yield server


@pytest.fixture(scope="module")
def gateway(reward: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    triton = f"{reward.endpoints.address}:{reward.endpoints.http}"
    with running(tmp_path_factory.mktemp("gateway"), triton) as process:
        yield process


def infer(server: ModelServer, model: str, **inputs: Any) -> dict[str, NDArray[Any]]:
    """Ask with NVIDIA's own client. The inputs are arrays with a batch axis."""
    url = f"{server.endpoints.address}:{server.endpoints.http}"
    tensors = []
    for name, array in inputs.items():
        datatype = {"O": "BYTES", "b": "BOOL", "i": "INT64"}[array.dtype.kind]
        tensor = tritonclient.http.InferInput(name, array.shape, datatype)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    with tritonclient.http.InferenceServerClient(url) as client:
        result = client.infer(model, tensors)
    names = [output["name"] for output in result.get_response()["outputs"]]
    return {name: result.as_numpy(name) for name in names}


def texts(*rows: object) -> NDArray[Any]:
    return np.array([[row] for row in rows], dtype=object)


def test_conversations_in_a_batch(reward: ModelServer) -> None:
    outputs = infer(
        reward, "reward", messages=texts(*(json.dumps(case["messages"]) for case in CASES))
    )
    assert outputs["scores"].shape == (len(CASES), 1, 5)
    assert outputs["reward"].dtype == outputs["scores"].dtype == np.float32
    for case, scores, total, tokens in zip(
        CASES, outputs["scores"], outputs["reward"], outputs["num_input_tokens"], strict=True
    ):
        assert np.abs(scores[0] - case["scores"][4:]).max() < F32_ERROR
        assert abs(total[0] - case["reward"]) < F32_ERROR
        assert tokens.tolist() == [len(case["token_ids"])]


def test_all_turns_of_a_conversation(reward: ModelServer) -> None:
    messages = CASES[1]["messages"]
    outputs = infer(reward, "reward", messages=texts(json.dumps(messages)), turns=texts("all"))
    assert outputs["scores"].shape == (1, 2, 5)
    first = infer(reward, "reward", messages=texts(json.dumps(messages[:2])))
    assert np.abs(outputs["scores"][0, 0] - first["scores"][0, 0]).max() < F32_ERROR
    assert np.abs(outputs["scores"][0, 1] - CASES[1]["scores"][4:]).max() < F32_ERROR


def test_sentences_as_the_annotation_client_of_nemo_sends_them(reward: ModelServer) -> None:
    """One sentence in a request, encoded by NumPy, with an input that says no to an end."""
    for case in [{"text": "hello world!", "scores": None}, *CASES]:
        sentence = np.char.encode(np.array([case["text"]])[..., np.newaxis], "utf-8")
        outputs = infer(
            reward,
            "reward_model",
            sentences=sentence.astype(object),
            add_EOS=np.ones_like(sentence, dtype=bool) * False,
        )
        rewards = outputs["rewards"].flatten()
        assert rewards.shape == (9,)
        assert outputs["exceeded"].tolist() == [[0]]
        if case["scores"] is not None:
            assert np.abs(rewards - case["scores"]).max() < F32_ERROR


def test_tokens_with_padding(reward: ModelServer) -> None:
    rows = [case["token_ids"] for case in CASES]
    width = max(map(len, rows)) + 3
    outputs = infer(
        reward,
        "reward_model",
        tokens=np.array([row + [0] * (width - len(row)) for row in rows], np.int64),
        sequence_lengths=np.array([[len(row)] for row in rows], np.int64),
    )
    expected = np.array([case["scores"] for case in CASES])
    assert np.abs(outputs["rewards"] - expected).max() < F32_ERROR


FIRST, YES = json.dumps(CASES[0]["messages"]), np.array([[True]])
LONG = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "word " * 4096}]


@pytest.mark.parametrize(
    ("model", "inputs", "error"),
    [
        ("reward", {"messages": texts(json.dumps(LONG))}, "more than the 4096 this model holds"),
        ("reward", {"messages": texts('[{"role": "user", "content": "a"}]')}, "from 'user'"),
        ("reward", {"turns": texts("all")}, "messages is missing"),
        ("reward", {"messages": texts("[]")}, "non-empty list"),
        (
            "reward",
            {
                "messages": texts(FIRST, FIRST),
                "turns": texts("all", "all"),
            },
            "all turns of one conversation",
        ),
        ("reward_model", {"add_EOS": np.array([[False]])}, "send sentences or tokens"),
        (
            "reward_model",
            {"sentences": texts("a"), "add_EOS": YES},
            "add_EOS is not",
        ),
        ("generate", {"text_input": texts("Hi")}, "max_tokens is missing"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    model: str, inputs: dict[str, Any], error: str, reward: ModelServer
) -> None:
    with pytest.raises(InferenceServerException, match=error):
        infer(reward, model, **inputs)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "generate"])
def test_a_request_for_text_is_refused_by_name(model: str, reward: ModelServer) -> None:
    body = {"messages": json.dumps(CASES[0]["messages"][:1]), "max_tokens": 4}
    status, answer = post(reward, f"/v2/models/{model}/generate", body)
    assert status == 400
    assert b"this engine is a reward model" in answer


def test_the_gateway_answers_in_the_form_of_the_nim(gateway: Running) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        names = [model.id for model in client.models.list()]
        assert names == ["nemotron-4-340b-reward", "nvidia/nemotron-4-340b-reward"]
        for case in CASES:
            answer = client.chat.completions.create(model=names[1], messages=case["messages"])
            (choice,) = answer.choices
            assert choice.logprobs is not None
            assert choice.logprobs.content is not None
            assert choice.message.content is not None
            entries = {entry.token: entry.logprob for entry in choice.logprobs.content}
            assert tuple(entries) == SCORED
            assert entries == read_scores(choice.message.content)
            assert np.abs(np.array(list(entries.values())) - case["scores"][4:]).max() < F32_ERROR
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == len(case["token_ids"])
        turns = client.chat.completions.create(
            model=names[0], messages=CASES[1]["messages"], extra_body={"turns": "all"}
        )
        assert [choice.index for choice in turns.choices] == [0, 1]


def read_scores(text: str) -> dict[str, float]:
    """Return the numbers of an answer's text, as programs for the NIM read them."""
    pairs = (part.split(":") for part in text.split(","))
    return {name: float(number) for name, number in pairs}


def chat(**more: object) -> dict[str, object]:
    return {"messages": CASES[0]["messages"], **more}


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        (
            CHAT,
            chat(temperature=0.5),
            400,
            "temperature: a reward model generates",
        ),
        (CHAT, chat(max_tokens=5), 400, "max_tokens: a reward model generates"),
        (CHAT, chat(stream=True), 400, "stream: scores come at once"),
        (
            CHAT,
            {"messages": CASES[0]["messages"][:1]},
            400,
            "the last message is from 'user'",
        ),
        (CHAT, {"messages": LONG}, 400, "maximum context length is 4096 tokens"),
        (CHAT, chat(model="nemotron-4-340b-instruct"), 404, "there is no model"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 3}, 400, "this is a reward model"),
        ("/v1/responses", {"input": "a"}, 400, "this is a reward model"),
    ],
)
def test_the_gateway_refuses_by_name(
    path: str, body: dict[str, object], status: int, error: str, gateway: Running
) -> None:
    answer = gateway.ask("POST", path, body)
    assert answer.status == status
    assert error in answer.text


def test_the_card_s_own_api_generates_and_is_refused(gateway: Running) -> None:
    answer = gateway.ask("PUT", "/generate", {"sentences": ["a"], "tokens_to_generate": 3})
    assert answer.status == 400
    assert "this is a reward model" in answer.text


def test_a_system_message_is_named_as_without_effect(gateway: Running) -> None:
    system = [{"role": "system", "content": "Be rude."}]
    answer = gateway.ask("POST", CHAT, {"messages": system + CASES[0]["messages"]})
    assert answer.headers["x-ignored-keys"] == "messages.system"
    scores = read_scores(json.loads(answer.text)["choices"][0]["message"]["content"])
    assert np.abs(np.array(list(scores.values())) - CASES[0]["scores"][4:]).max() < F32_ERROR


def test_it_is_ready_and_says_what_it_is(reward: ModelServer, gateway: Running) -> None:
    assert gateway.ask("GET", "/health/ready").status == 200
    models = json.loads(gateway.ask("GET", "/v1/models").text)["data"]
    assert {model["kind"] for model in models} == {"reward"}
    assert reward.is_working
    reward.check()


def test_a_recipe_is_scored_by_it(gateway: Running, tmp_path: Path) -> None:
    """By `nemotron synthesize`: the last answer of each conversation, and each of them."""
    given = [{"messages": case["messages"]} for case in CASES]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    score: dict[str, Any] = {"reward": "reward"}
    steps = {
        "last": {"rows": "in.jsonl", "score": score},
        "each": {"rows": "in.jsonl", "score": score | {"every_turn": True}},
    }
    content = recipe(gateway.url, steps, {"out.jsonl": {"rows": "last", "format": "helpsteer2"}})
    content["models"]["reward"]["model"] = "nvidia/nemotron-4-340b-reward"
    run(tmp_path, content)
    records = rows(tmp_path)
    for case, record in zip(CASES, records, strict=True):
        scores = np.array([record[name] for name in SCORED])
        assert np.abs(scores - case["scores"][4:]).max() < F32_ERROR
        assert abs(record["reward"] - case["reward"]) < F32_ERROR
    for record, each in zip(records, rows(tmp_path, "steps/each.jsonl"), strict=True):
        answers = sum(turn["role"] == "assistant" for turn in each["messages"])
        assert len(each["turn_rewards"]) == answers
        assert abs(each["turn_rewards"][-1] - record["reward"]) < F32_ERROR
