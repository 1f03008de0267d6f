"""Every model that takes requests refuses an invalid request and says what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from nemotron_serve.model_server import ModelServer
from tests.serve.wire import ASK, TEXT_MODELS, post, text, whole

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({"max_tokens": 5}, "exactly one of text_input, messages, input_token_ids"),
    "both": (
        {"text_input": "a", "messages": ASK, "max_tokens": 5},
        "exactly one of text_input, messages, input_token_ids",
    ),
    "no JSON": ({"messages": "hello", "max_tokens": 5}, "messages is not JSON"),
    "unknown role": (
        {"messages": '[{"role": "tool", "content": "a"}]', "max_tokens": 5},
        "unknown role 'tool'",
    ),
    "user continued": (
        {"messages": ASK, "max_tokens": 5, "continue_final_message": True},
        "the last message is from 'user'",
    ),
    "empty": ({"text_input": "", "max_tokens": 5}, "the prompt is empty"),
    "NUL": ({"text_input": "a\0b", "max_tokens": 5}, "NUL"),
    "not UTF-8": ({"text_input": b"\xff\xfe", "max_tokens": 5}, "not valid UTF-8"),
    "no tokens": ({"messages": ASK, "max_tokens": 0}, "max_tokens is 0"),
    "too long": (
        {"text_input": "<extra_id_1>" * 4090, "max_tokens": 100},
        "4090 prompt tokens and max_tokens 100 are more than the 4096",
    ),
    "NaN": (
        {"messages": ASK, "max_tokens": 5, "temperature": float("nan")},
        "temperature is nan",
    ),
    "top_p": ({"messages": ASK, "max_tokens": 5, "top_p": 2.0}, "top_p is 2.0"),
    "end_id": ({"messages": ASK, "max_tokens": 5, "end_id": 1536}, "token id 1536 is outside"),
    "max_tokens missing": ({"messages": ASK, "stream": True}, "max_tokens is missing"),
    "long stop": ({"messages": ASK, "max_tokens": 5, "stop_words": ["x" * 1025]}, "stop string 1"),
    "no sequences": (
        {"messages": ASK, "max_tokens": 5, "num_return_sequences": 0},
        "num_return_sequences is 0",
    ),
    "prompts of two forms": (
        {"messages": ASK, "input_token_ids": [5], "max_tokens": 5},
        "exactly one of text_input, messages, input_token_ids",
    ),
    "token outside": (
        {"input_token_ids": [5, 1536], "max_tokens": 5},
        "token id 1536 is outside the vocabulary of 1536",
    ),
    "min_tokens": ({"messages": ASK, "max_tokens": 5, "min_tokens": 6}, "min_tokens is 6"),
    "end_id -2": ({"messages": ASK, "max_tokens": 5, "end_id": -2}, "token id -2 is outside"),
    "two values": ({"messages": ASK, "max_tokens": [5, 6]}, "shape|one value"),
}


@pytest.mark.parametrize("model", TEXT_MODELS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused_and_harms_nobody(
    name: str, model: str, server: ModelServer
) -> None:
    fields, message = REFUSED[name]
    if model == "generate":
        fields = {name: value for name, value in fields.items() if name != "stream"}
    with pytest.raises(InferenceServerException) as caught:
        whole(server, model, **fields)
    assert any(part in str(caught.value) for part in message.split("|"))
    assert text([whole(server, model, messages=ASK, max_tokens=200)]).startswith("I am")


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_a_key_that_is_no_input_is_not_ignored(model: str, server: ModelServer) -> None:
    for key in ("temprature", "beam_widths"):
        body = {"messages": ASK, "max_tokens": 5, key: 2}
        status, reply = post(server, f"/v2/models/{model}/generate", body)
        assert status == 400
        assert f"there is no input '{key}'" in json.loads(reply)["error"]


def test_an_error_on_generate_stream_has_its_status(server: ModelServer) -> None:
    body = {"messages": ASK, "max_tokens": 5, "stream": True, "temperature": -1.0}
    status, reply = post(server, "/v2/models/ensemble/generate_stream", body)
    assert status == 400
    assert b"temperature is -1.0: use 0 to " in reply


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temprature": 1}, "there is no input 'temprature'"),
        ({"chunk_tokens": 2}, "chunk_tokens is 2: use 1"),
        ({"timeout": -1}, "timeout is -1: use a whole number from 0 on"),
        ({"timeout": 1.5}, "timeout is 1.5"),
        ({"priority": True}, "priority is True"),
    ],
)
@pytest.mark.parametrize("model", [*TEXT_MODELS, "tensorrt_llm"])
def test_request_parameters_that_mean_nothing(
    parameters: dict[str, Any], message: str, model: str, server: ModelServer
) -> None:
    tokens = {"input_ids": [5], "input_lengths": 1, "request_output_len": 2}
    fields = tokens if model == "tensorrt_llm" else {"messages": ASK, "max_tokens": 5}
    path = f"/v2/models/{model}/generate"
    status, reply = post(server, path, fields | parameters)
    assert status == 400
    assert message in json.loads(reply)["error"]
