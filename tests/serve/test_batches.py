"""Several prompts in one request, and several answers to each prompt."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from nemotron_build.profile import Profile
from nemotron_core.text import Tokenizer
from nemotron_serve.model_server import ModelServer
from tests.serve.wire import (
    ASK,
    MODELS,
    TEXT_MODELS,
    infer,
    inputs,
    post,
    stream,
    text,
    whole,
)

PROMPTS = ("<extra_id_1>Go", "<extra_id_1>Count to ten", "<extra_id_1>User\nWho are you?\n")
LENGTHS = (5, 12, 9)
SAMPLES = {"temperature": 2.0, "top_p": 1.0, "end_id": 0}
SEEDS = (7, 70, 7)
PAD = 3


def column(*values: Any) -> np.ndarray[Any, Any]:
    """Return one value for each prompt of a batch, as a tensor [N, 1]."""
    elements = [value.encode() if isinstance(value, str) else value for value in values]
    return np.array(elements, object if isinstance(elements[0], bytes) else None)[:, None]


def batch(count: int = 1) -> dict[str, Any]:
    """Return a request with the three prompts, and `count` answers to each."""
    same = SAMPLES | {"num_return_sequences": count, "return_log_probs": True, "pad_id": PAD}
    return {
        "text_input": column(*PROMPTS),
        "max_tokens": column(*LENGTHS),
        "seed": column(*SEEDS),
        **{name: column(*[value] * len(PROMPTS)) for name, value in same.items()},
    }


@pytest.fixture(scope="module")
def alone(server: ModelServer) -> dict[tuple[int, int], dict[str, Any]]:
    """The answer to each prompt and seed in a request of its own."""
    return {
        (row, index): infer(
            server,
            text_input=PROMPTS[row],
            max_tokens=LENGTHS[row],
            seed=SEEDS[row] + index,
            return_log_probs=True,
            **SAMPLES,
        )
        for row in range(len(PROMPTS))
        for index in range(2)
    }


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("model", TEXT_MODELS)
def test_one_response_has_all_answers(
    model: str,
    count: int,
    server: ModelServer,
    alone: dict[tuple[int, int], dict[str, Any]],
) -> None:
    response = whole(server, model, **batch(count))
    total, longest = len(PROMPTS) * count, max(LENGTHS)
    assert {name: array.shape for name, array in response.items()} == {
        "text_output": (total,),
        "output_token_ids": (total, longest),
        "output_log_probs": (total, 1, longest),
        **dict.fromkeys(
            (
                *("stop_reason", "finish_reason", "cum_log_probs", "num_input_tokens"),
                *("num_output_tokens", "batch_index", "sequence_index"),
            ),
            (total, 1),
        ),
    }
    order = [(row, index) for row in range(len(PROMPTS)) for index in range(count)]
    indices = zip(response["batch_index"][:, 0], response["sequence_index"][:, 0], strict=True)
    assert list(indices) == order
    for number, place in enumerate(order):
        expected, length = alone[place], LENGTHS[place[0]]
        assert response["text_output"][number] == expected["text_output"][0]
        ids = response["output_token_ids"][number]
        assert ids[:length].tolist() == expected["output_token_ids"][0].tolist()
        assert set(ids[length:]) <= {PAD}
        log_probs = response["output_log_probs"][number, 0]
        assert log_probs[:length] == pytest.approx(expected["output_log_probs"][0, 0], abs=0.05)
        assert not log_probs[length:].any()
        for name in ("num_input_tokens", "num_output_tokens", "finish_reason", "stop_reason"):
            assert response[name][number] == expected[name][0]
    assert len({*map(bytes, response["output_token_ids"])}) > count


@pytest.mark.parametrize("model", MODELS)
def test_in_a_stream_each_response_belongs_to_one_answer(
    model: str, server: ModelServer, alone: dict[tuple[int, int], dict[str, Any]]
) -> None:
    streaming = column(*[True] * len(PROMPTS))
    parts: dict[tuple[int, int], list[dict[str, Any]]] = {place: [] for place in alone}
    for response in stream(server, model, stream=streaming, **batch(2)):
        assert response["text_output"].shape == (1,)
        assert response["output_token_ids"].shape[0] == 1
        place = (response["batch_index"].item(), response["sequence_index"].item())
        parts[place].append(response)
    middle = {
        *("text_output", "output_token_ids", "num_output_tokens", "batch_index"),
        *("sequence_index", "output_log_probs", "cum_log_probs"),
    }
    for place, responses in parts.items():
        expected = alone[place]
        assert text(responses) == text([expected])
        ids = [id_ for response in responses for id_ in response["output_token_ids"][0]]
        assert ids == expected["output_token_ids"][0].tolist()
        assert all(set(response) == middle for response in responses[:-1])
        assert responses[-1]["finish_reason"].item() == b"length"
        counts = [response["num_output_tokens"].item() for response in responses]
        assert counts == sorted(counts)
        assert counts[-1] == len(ids)


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_a_stop_string_ends_only_its_own_answer(model: str, server: ModelServer) -> None:
    sampled = {"text_input": "<extra_id_1>Go", "max_tokens": 60} | SAMPLES
    first, second = (text([infer(server, **sampled, seed=seed)]) for seed in (20, 21))
    stop = next(word for word in first.split() if len(word) > 2 and word not in second)
    response = whole(server, model, **sampled, seed=20, num_return_sequences=2, stop_words=[stop])
    assert response["finish_reason"].ravel().tolist() == [b"stop", b"length"]
    assert response["stop_reason"].ravel().tolist() == [stop.encode(), b""]
    texts = [data.decode() for data in response["text_output"]]
    assert texts == [first[: first.index(stop)], second]


def test_a_wrong_prompt_refuses_the_whole_batch(server: ModelServer) -> None:
    fields = batch() | {"max_tokens": column(5, 0, 5)}
    for model in TEXT_MODELS:
        with pytest.raises(InferenceServerException, match="max_tokens is 0"):
            whole(server, model, **fields)


def test_more_prompts_than_the_profile_allows(server: ModelServer, served_profile: Profile) -> None:
    count = served_profile.limits.max_batch_size
    rows = {"text_input": column(*[PROMPTS[0]] * count), "max_tokens": column(*[2] * count)}
    assert infer(server, **rows)["text_output"].shape == (count,)
    more = {name: np.concatenate([value, value[:1]]) for name, value in rows.items()}
    with pytest.raises(InferenceServerException, match="batch-size must be <="):
        infer(server, **more)


def test_a_batch_over_http(server: ModelServer) -> None:
    endpoints = server.endpoints
    with tritonclient.http.InferenceServerClient(f"{endpoints.address}:{endpoints.http}") as client:
        fields = {"text_input": column(*PROMPTS), "max_tokens": column(*LENGTHS)}
        result = client.infer("generate", inputs(tritonclient.http, **fields))
    expected = infer(server, **fields)
    assert result.as_numpy("text_output").tolist() == expected["text_output"].tolist()


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_several_answers_over_generate_are_one_response(model: str, server: ModelServer) -> None:
    body = {"messages": ASK, "max_tokens": 6, "num_return_sequences": 2}
    status, reply = post(server, f"/v2/models/{model}/generate", body)
    assert status == 200
    texts = json.loads(reply)["text_output"]
    assert len(texts) == 2
    assert texts[0] == texts[1]  # greedy


@pytest.mark.parametrize("streaming", [False, True])
def test_a_batch_of_token_prompts(
    streaming: bool, server: ModelServer, tokenizer: Tokenizer
) -> None:
    """The classic form: rows of ids, filled up to the longest, and their lengths."""
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    longest = max(map(len, prompts))
    padded = np.array([ids + [PAD] * (longest - len(ids)) for ids in prompts])
    rows = len(prompts)
    responses = stream(
        server,
        "tensorrt_llm",
        input_ids=padded,
        input_lengths=column(*map(len, prompts)),
        request_output_len=column(*LENGTHS),
        end_id=column(*[0] * rows),
        pad_id=column(*[PAD] * rows),
        num_return_sequences=column(*[2] * rows),
        streaming=column(*[streaming] * rows),
    )
    ids: dict[tuple[int, int], list[int]] = {}
    for response in responses:
        assert response["output_ids"].shape[1] == 1
        for row, length in enumerate(response["sequence_length"].ravel()):
            place = (response["batch_index"][row, 0], response["sequence_index"][row, 0])
            ids.setdefault(place, []).extend(response["output_ids"][row, 0, :length])
            assert set(response["output_ids"][row, 0, length:]) <= {PAD}
    order = [(row, index) for row in range(rows) for index in range(2)]
    assert sorted(ids) == order
    if not streaming:
        assert len(responses) == 1
        assert list(ids) == order
    for row, prompt in enumerate(PROMPTS):
        alone = infer(server, text_input=prompt, max_tokens=LENGTHS[row], end_id=0)
        for index in range(2):
            assert ids[row, index] == alone["output_token_ids"][0].tolist()
