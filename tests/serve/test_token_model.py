"""`tensorrt_llm` itself: tokens in, tokens out, with the classic backend's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from nemotron_core.text import Tokenizer
from nemotron_serve.model_server import ModelServer
from tests.serve.wire import ENGINE_OUTPUTS, ONLY_TEXT_OUTPUTS, OUTPUTS, last, stream
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids

NEUTRAL: dict[str, Any] = {
    "beam_width": 1,
    "pad_id": 0,
    "len_penalty": 1.0,
    "runtime_top_p_min": 1e-6,
    "runtime_top_p_decay": 1.0,
    "runtime_top_p_reset_ids": -1,
    "min_length": 1,
    "random_seed": 7,
    "return_kv_cache_reuse_stats": False,
    "return_context_logits": False,
    "return_generation_logits": False,
    "return_log_probs": False,
    "draft_input_ids": np.zeros((1, 0)),
    "draft_logits": np.zeros((1, 0, 0)),
    "exclude_input_in_output": True,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "temperature": 1.0,
    "runtime_top_k": 1,
    "runtime_top_p": 0.0,
    "num_return_sequences": 1,
    "stop": False,
}
"""What classic clients send without wanting any effect."""
OTHER_NEUTRAL: dict[str, Any] = {
    "len_penalty": 0.0,
    "runtime_top_p_min": 0.0,
    "runtime_top_p_decay": 0.0,
    "runtime_top_p_reset_ids": 0,
    "draft_acceptance_threshold": 1.0,
    "min_tokens": 0,
    "min_length": 0,
}
LACKING: dict[str, Any] = {
    "beam_width": 2,
    "len_penalty": 0.5,
    "runtime_top_p_min": 0.5,
    "runtime_top_p_decay": 0.5,
    "runtime_top_p_reset_ids": 4,
    "draft_input_ids": [5, 6],
    "draft_logits": np.zeros((1, 1, 4)),
    "draft_acceptance_threshold": 0.5,
    "return_context_logits": True,
    "return_generation_logits": True,
    "bad_words_list": np.array([[[0], [1]]]),
    "embedding_bias": np.ones((1, 1536)),
    "lora_task_id": 1,
    "prompt_vocab_size": 1,
}
FEATURES = {"bad_words_list": "bad_words", "embedding_bias": "bias"}
"""What an engine of another lane may have."""
NO_WORDS = np.array([[[0], [-1]]])
"""How classic clients say that there is no word."""


def prompt(tokenizer: Tokenizer, exact: ExactAnswer) -> dict[str, Any]:
    ids = prompt_ids(tokenizer, exact.question.messages)
    return {"input_ids": ids, "input_lengths": len(ids), "request_output_len": 200}


def tokens(responses: list[dict[str, Any]]) -> list[int]:
    for response in responses:
        assert response["output_ids"].shape == (1, 1, response["sequence_length"].item())
    return [id_ for response in responses for id_ in response["output_ids"][0, 0]]


@pytest.mark.parametrize("streaming", [False, True])
def test_tokens_as_transformers_gives_them(
    streaming: bool, server: ModelServer, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    counts = []
    for exact in answers[::150]:
        fields = prompt(tokenizer, exact)
        responses = stream(server, "tensorrt_llm", streaming=streaming, end_id=5, **fields)
        assert tokens(responses) == exact.token_ids
        counts.append(len(responses))
        assert last(responses, "finish_reason") == "stop"
        assert last(responses, "num_input_tokens") == fields["input_lengths"]
        assert last(responses, "num_output_tokens") == len(exact.token_ids)
    assert (max(counts) > 1) == streaming  # an engine may be faster than who reads a short one


def test_inputs_without_an_effect_are_accepted(
    server: ModelServer, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    fields = prompt(tokenizer, answers[0]) | {"end_id": 5}
    for neutral in (
        NEUTRAL,
        NEUTRAL | OTHER_NEUTRAL,
        {"stop_words_list": NO_WORDS, "bad_words_list": NO_WORDS},
        {"stop_words_list": np.zeros((1, 2, 0)), "bad_words_list": np.zeros((1, 2, 0))},
        {"embedding_bias": np.zeros((1, 1536))},
    ):
        assert tokens(stream(server, "tensorrt_llm", **fields, **neutral)) == answers[0].token_ids


@pytest.mark.parametrize("name", LACKING)
def test_what_this_engine_lacks_is_refused_by_name(name: str, server: ModelServer) -> None:
    fields = {"input_ids": [5, 300], "input_lengths": 2, "request_output_len": 3}
    fields[name] = LACKING[name]
    if FEATURES.get(name) in server.engine.hello.capabilities.features:
        assert len(tokens(stream(server, "tensorrt_llm", **fields))) == 3
        return
    refusal = f"{name} is not on this engine|there is no adapter '1'"
    with pytest.raises(InferenceServerException, match=refusal):
        stream(server, "tensorrt_llm", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_lengths": 4}, "input_lengths is 4, but there are 3 input_ids"),
        ({"input_lengths": -1}, "input_lengths is -1"),
        ({"input_lengths": 0}, "the prompt is empty"),
        ({"request_output_len": 0}, "max_tokens is 0"),
        (
            {"request_output_len": 5000},
            "3 prompt tokens and max_tokens 5000 are more than the 4096",
        ),
        ({"input_ids": [1, 2, 5000]}, "token id 5000 is outside the vocabulary of 1536"),
        ({"end_id": 1536}, "token id 1536 is outside"),
        ({"end_id": -2}, "token id -2 is outside"),
        ({"stop_words_list": np.array([[[5, 6], [3, -1]]])}, "the ends .3. do not rise up to"),
        ({"stop_words_list": np.array([[[5, 6], [2, 1]]])}, "the ends .2, 1. do not rise"),
        ({"stop_words_list": np.array([[[5, 1600], [1, 2]]])}, "token id 1600 is outside"),
        ({"runtime_top_p": 1.5}, "top_p is 1.5"),
        ({"runtime_top_k": -1}, "top_k is -1"),
        ({"num_return_sequences": 65}, "num_return_sequences is 65: use 1 to 64"),
        ({"min_length": 9}, "min_tokens is 9"),
    ],
)
def test_wrong_values(fields: dict[str, Any], message: str, server: ModelServer) -> None:
    right = {"input_ids": [1, 2, 3], "input_lengths": 3, "request_output_len": 4}
    with pytest.raises(InferenceServerException, match=message):
        stream(server, "tensorrt_llm", **(right | fields))
    for name in right:
        fields = {key: value for key, value in right.items() if key != name}
        missing = "the prompt is empty|input_lengths" if name == "input_ids" else f"{name} is miss"
        with pytest.raises(InferenceServerException, match=missing):
            stream(server, "tensorrt_llm", **fields)


def test_a_prompt_that_is_filled_up(server: ModelServer) -> None:
    right = {"input_ids": [5, 300], "input_lengths": 2, "request_output_len": 6, "end_id": -1}
    padded = right | {"input_ids": [5, 300, 0, 0]}
    expected, actual = (stream(server, "tensorrt_llm", **fields) for fields in (right, padded))
    assert tokens(actual) == tokens(expected)
    assert last(actual, "num_input_tokens") == 2


def test_end_id_minus_1_means_none(
    server: ModelServer, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[0]
    count = len(exact.token_ids) + 10
    fields = prompt(tokenizer, exact) | {"request_output_len": count}
    for end_id in ({}, {"end_id": -1}):  # no text model: no end without an end_id
        responses = stream(server, "tensorrt_llm", **fields, **end_id)
        assert tokens(responses)[: len(exact.token_ids)] == exact.token_ids
        assert last(responses, "num_output_tokens") == count
        assert last(responses, "finish_reason") == "length"


@pytest.mark.parametrize("streaming", [False, True])
def test_stop_words_of_several_tokens(
    streaming: bool, server: ModelServer, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    """They are sequences of tokens, given by all tokens in a row and where each sequence ends."""
    exact = next(exact for exact in answers if len(set(exact.token_ids)) == len(exact.token_ids))
    ids = exact.token_ids
    words = [[ids[3], ids[5]], ids[4:7], [9, 9, 9, 9]]
    flat = [id_ for word in words for id_ in word]
    ends = list(np.cumsum([len(word) for word in words])) + [-1] * (len(flat) - len(words))
    responses = stream(
        server,
        "tensorrt_llm",
        streaming=streaming,
        stop_words_list=np.array([[flat, ends]]),
        **prompt(tokenizer, exact),
    )
    assert tokens(responses) == ids[:7]
    assert last(responses, "finish_reason") == "stop"


@pytest.mark.parametrize("streaming", [False, True])
def test_an_answer_may_begin_with_its_prompt(streaming: bool, server: ModelServer) -> None:
    fields = {"input_ids": [5, 300, 0], "input_lengths": 2, "request_output_len": 6, "end_id": -1}
    plain, with_prompt = (
        stream(
            server,
            "tensorrt_llm",
            streaming=streaming,
            exclude_input_in_output=excluded,
            return_log_probs=True,
            **fields,
        )
        for excluded in (True, False)
    )
    assert tokens(with_prompt) == [5, 300, *tokens(plain)]
    assert last(with_prompt, "num_output_tokens") == 6
    assert sum(response["output_log_probs"].size for response in with_prompt) == 6


def test_what_is_sent(server: ModelServer) -> None:
    fields = {"input_ids": [5, 300], "input_lengths": 2, "request_output_len": 6, "end_id": -1}
    asked = ("return_log_probs", "return_perf_metrics", "return_kv_cache_reuse_stats")
    only_asked = {name for name in OUTPUTS if name.endswith(("_ns", "_blocks", "log_probs"))}
    everything = OUTPUTS.keys() - ONLY_TEXT_OUTPUTS | ENGINE_OUTPUTS.keys()
    (plain,) = stream(server, "tensorrt_llm", **fields)
    assert set(plain) == everything - only_asked
    (full,) = stream(server, "tensorrt_llm", **fields, **dict.fromkeys(asked, True))
    assert set(full) == everything
    assert full["output_ids"].shape == (1, 1, 6)
    assert full["output_log_probs"].shape == (1, 1, 6)
    assert full["cum_log_probs"].item() == pytest.approx(full["output_log_probs"].sum(), abs=1e-4)
    assert full["acceptance_rate"].tolist() == [[0.0]]
    single = everything - {"output_ids", "output_log_probs"}
    assert {full[name].shape for name in single} == {(1, 1)}
