"""Every model that takes requests refuses an invalid request and says what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from nemotron_serve.server import TritonServer
from tests.serve.wire import ASK, MODELS, post, stream, text

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
    "assistant last": (
        {
            "messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
            "max_tokens": 5,
        },
        "the last message is from 'assistant'",
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
    "echo": (
        {"messages": ASK, "max_tokens": 5, "exclude_input_in_output": False},
        "an answer never repeats its prompt",
    ),
    "long stop": ({"messages": ASK, "max_tokens": 5, "stop_words": ["x" * 1025]}, "stop string 1"),
    "no sequences": (
        {"messages": ASK, "max_tokens": 5, "num_return_sequences": 0},
        "num_return_sequences is 0",
    ),
    "two values": ({"messages": ASK, "max_tokens": [5, 6]}, "shape|one value"),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused_and_harms_nobody(
    name: str, model: str, server: TritonServer
) -> None:
    fields, message = REFUSED[name]
    with pytest.raises(InferenceServerException) as caught:
        stream(server, model, **fields)
    assert any(part in str(caught.value) for part in message.split("|"))
    assert text(stream(server, model, messages=ASK, max_tokens=200)).startswith("I am")


@pytest.mark.parametrize("model", [*MODELS, "generate"])
def test_a_key_that_is_no_input_is_not_ignored(model: str, server: TritonServer) -> None:
    for key in ("temprature", "beam_widths"):
        body = {"messages": ASK, "max_tokens": 5, key: 2}
        status, reply = post(server, f"/v2/models/{model}/generate", body)
        assert status == 400
        assert f"there is no input '{key}'" in json.loads(reply)["error"]


def test_an_error_on_generate_stream_has_its_status(server: TritonServer) -> None:
    body = {"messages": ASK, "max_tokens": 5, "stream": True, "temperature": -1.0}
    status, reply = post(server, "/v2/models/ensemble/generate_stream", body)
    assert status == 400
    assert b"temperature is -1.0: use 0 to 1000" in reply


def test_the_engine_refuses_a_padded_prompt(server: TritonServer) -> None:
    prompt = {"input_ids": [1, 2, 3], "input_lengths": 2, "request_output_len": 4}
    with pytest.raises(InferenceServerException, match="input_lengths is 2, but there are 3"):
        stream(server, "tensorrt_llm", **prompt)
