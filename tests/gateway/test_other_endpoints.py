"""The endpoints beside the two that complete: models, tokens, versions, and what is not served."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import openai
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from nemotron_core.text import Tokenizer
from tests.gateway.process import MODEL, Running

ALIAS = "nvidia/nemotron-4-340b-instruct"


def test_the_catalogs_name_works_out_of_the_box(client: openai.OpenAI, gateway: Running) -> None:
    names = [model.id for model in client.models.list().data]
    assert names == [MODEL, ALIAS]
    assert client.models.retrieve(ALIAS).id == ALIAS
    answer = client.chat.completions.create(
        model=ALIAS, messages=[{"role": "user", "content": "Who are you?"}], max_tokens=3
    )
    assert answer.model == ALIAS
    facts = gateway.ask("GET", "/v1/models").json["data"][0]
    assert answer.system_fingerprint == f"fp_{facts['engine'][:16]}"
    chunk = gateway.chat("Hi", stream=True, max_tokens=2).events()[0]
    assert chunk["system_fingerprint"] == answer.system_fingerprint
    assert gateway.complete("Hi", max_tokens=1).json["system_fingerprint"]
    other = gateway.ask("GET", "/v1/models/nvidia/other")
    assert (other.status, other.json["error"]["code"]) == (404, "model_not_found")


def test_tokens_there_and_back(gateway: Running, tokenizer: Tokenizer) -> None:
    prompt = "<extra_id_1>User\nHéllo"
    answer = gateway.ask("POST", "/tokenize", {"prompt": prompt, "return_token_strs": True}).json
    assert answer["tokens"] == tokenizer.encode(prompt)
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 4096
    assert answer["token_strs"][0] == "<extra_id_1>"
    back = gateway.ask("POST", "/detokenize", {"tokens": answer["tokens"], "model": ALIAS})
    assert back.json == {"prompt": prompt}
    body = {"prompt": prompt, "add_special_tokens": True, "model": None}
    assert gateway.ask("POST", "/tokenize", body).json["tokens"] == answer["tokens"]
    assert gateway.ask("POST", "/tokenize", {"prompt": ""}).json["tokens"] == []


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "either prompt or messages"),
        ("/tokenize", {"prompt": 5}, "prompt: "),
        ("/tokenize", {"prompt": "a\0"}, "NUL"),
        ("/detokenize", {"tokens": [1, 10**6]}, "token id 1000000 is outside the vocabulary"),
        ("/detokenize", {"tokens": [-1]}, "token id -1 is outside"),
        ("/detokenize", {}, "tokens: "),
    ],
)
def test_wrong_tokens(gateway: Running, path: str, body: Any, message: str) -> None:
    answer = gateway.ask("POST", path, body)
    assert answer.status == 400
    assert message in answer.message


def test_the_chat_template_renders_as_the_gateway_does(gateway: Running) -> None:
    """As harnesses do that ask for it and render prompts themselves."""
    info = gateway.ask("GET", "/tokenizer_info").json
    assert (info["bos_token"], info["eos_token"]) == ("<s>", "</s>")
    messages = [
        {"role": "system", "content": "A"},
        {"role": "user", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "system", "content": "D"},
    ]
    (prompt,), _ = render_jinja_template(
        [messages], chat_template=info["chat_template"], add_generation_prompt=True
    )
    rendered = gateway.ask("POST", "/tokenize", {"prompt": prompt}).json["tokens"]
    assert gateway.ask("POST", "/tokenize", {"messages": messages}).json["tokens"] == rendered


def test_versions_and_health(gateway: Running) -> None:
    assert gateway.ask("GET", "/version").json == {"version": version("nemotron-triton")}
    assert gateway.ask("GET", "/health").status == 200


@pytest.mark.parametrize(
    ("path", "word"),
    [("/v1/embeddings", "embeddings"), ("/v1/moderations", "moderations"),
     ("/v1/images/generations", "images"), ("/v1/threads", "stored")],
)  # fmt: skip
def test_what_is_not_served_says_so(gateway: Running, path: str, word: str) -> None:
    answer = gateway.ask("POST", path, {"model": MODEL, "input": "a"})
    assert answer.status == 404
    assert word in answer.message
    assert answer.json["error"]["code"] == "not_served"


def test_a_response(client: openai.OpenAI, gateway: Running) -> None:
    text = gateway.chat("Who are you?").json["choices"][0]["message"]["content"]
    answer = client.responses.create(model=ALIAS, input="Who are you?", temperature=0)
    assert answer.output_text == text
    assert (answer.status, answer.model) == ("completed", ALIAS)
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 5
    parts = client.responses.create(
        model=MODEL,
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Who are you?"}]},
            {"type": "message", "role": "assistant", "content": "I"},
            {"role": "user", "content": "Go on"},
        ],
        temperature=0,
        max_output_tokens=2,
        store=False,
    )
    assert (parts.status, parts.incomplete_details and parts.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    json_ = client.responses.create(
        model=MODEL,
        input="Red or blue?",
        temperature=0,
        text={"format": {"type": "json_schema", "name": "c", "schema": {"enum": ["red"]}}},
    )
    assert json_.output_text.strip() == '"red"'


def test_a_streamed_response(client: openai.OpenAI) -> None:
    settings: Any = {"model": MODEL, "input": "Who are you?", "temperature": 0}
    whole = client.responses.create(**settings).output_text
    with client.responses.stream(**settings) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == final.output_text == whole
    assert [event.sequence_number for event in events] == sorted(
        event.sequence_number for event in events
    )
    assert events[-1].type == "response.completed"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"previous_response_id": "resp_1"}, "nothing is stored"),
        ({"tools": [{"type": "web_search"}]}, "no tool format"),
        ({"input": []}, "input: "),
        ({"input": [{"type": "reasoning", "role": "user"}]}, "only messages are read"),
        ({"reasoning": {"effort": "high"}}, "does not reason"),
        ({"model": "other"}, "there is no model 'other'"),
    ],
)
def test_a_wrong_response(gateway: Running, more: Any, message: str) -> None:
    answer = gateway.ask("POST", "/v1/responses", {"model": MODEL, "input": "a"} | more)
    assert answer.status == (404 if "model" in more else 400)
    assert message in answer.message
