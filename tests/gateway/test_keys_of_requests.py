"""Which keys of requests are taken, ignored and refused, on the real stack."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.openai.keys import NEUTRAL_ONLY, REFUSED, keys_of
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from tests.gateway.process import MODEL, Running, running
from tests.waiting import until

GO = "<extra_id_1>Go"
ROOT = Path(__file__).parents[2]
CHANGES_NOTHING: dict[str, Any] = {
    "min_p": 0,
    "top_k": -1,
    "ignore_eos": False,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1,
    "n": 1,
    "best_of": 1,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "stop": [],
    "stop_token_ids": [],
    "bad_words": [],
    "min_tokens": 0,
    "seed": 7,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "skip_special_tokens": True,
    "spaces_between_special_tokens": False,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "priority": 0,
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
}
CHAT_CHANGES_NOTHING: dict[str, Any] = {
    "tools": [],
    "tool_choice": "auto",
    "functions": [],
    "parallel_tool_calls": True,
    "reasoning_effort": "none",
    "modalities": ["text"],
    "chat_template_kwargs": {"enable_thinking": False},
    "logprobs": False,
    "top_logprobs": 0,
    "service_tier": "flex",
    "add_generation_prompt": True,
    "continue_final_message": False,
}


def test_the_page_has_the_keys() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "gateway_keys.py"))
    assert script["table"]() in (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")


def test_values_that_change_nothing_are_taken(gateway: Running) -> None:
    plain = gateway.chat("Who are you?").json["choices"]
    answer = gateway.chat("Who are you?", **CHANGES_NOTHING, **CHAT_CHANGES_NOTHING)
    assert answer.status == 200, answer.text
    assert answer.json["choices"] == plain
    assert "x-ignored-keys" not in answer.headers
    plain = gateway.complete(GO).json["choices"]
    answer = gateway.complete(GO, **CHANGES_NOTHING, suffix="", echo=False)
    assert answer.status == 200, answer.text
    assert answer.json["choices"] == plain


def test_null_is_absent_for_every_key(gateway: Running) -> None:
    nulls = dict.fromkeys(set(ChatRequest.model_fields) - {"messages"})
    message = {"role": "user", "content": "Who are you?", "name": None, "tool_calls": None}
    body = nulls | {"messages": [message], "max_tokens": 8, "unknown": None}
    answer = gateway.ask("POST", "/v1/chat/completions", body)
    assert answer.status == 200, answer.text
    assert answer.json["model"] == MODEL
    assert "x-ignored-keys" not in answer.headers
    nulls = dict.fromkeys(set(CompletionRequest.model_fields) - {"prompt"})
    answer = gateway.ask("POST", "/v1/completions", nulls | {"prompt": GO})
    assert answer.status == 200, answer.text
    assert answer.json["usage"]["completion_tokens"] <= 16


def test_every_neutral_value_is_taken_and_no_other(gateway: Running) -> None:
    for schema, path, prompt in (
        (ChatRequest, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        (CompletionRequest, "/v1/completions", {"prompt": GO}),
    ):
        keys = [key for key in keys_of(schema) if key.support in (NEUTRAL_ONLY, REFUSED)]
        assert len(keys) > 10
        neutral = {key.name: key.neutral[0] for key in keys if key.neutral}
        answer = gateway.ask("POST", path, prompt | neutral | {"max_tokens": 2})
        assert answer.status == 200, answer.text
        for key in keys:
            answer = gateway.ask("POST", path, prompt | {key.name: {"an": "effect"}})
            assert answer.status == 400, key.name
            assert answer.message == f"{key.name}: {key.note}"
            assert answer.json["error"]["param"] == key.name
            assert len(key.note) > 10


def test_unknown_keys_are_ignored_and_named(gateway: Running) -> None:
    message = {"role": "user", "content": "Who are you?", "weight": 1}
    body = {"messages": [message], "temprature": 1, "a\r\nb: c": 2, "stream_options": {"x": 1}}
    answer = gateway.chat("", **body)
    assert answer.status == 200
    named = "temprature, a%0D%0Ab%3A%20c, stream_options.x, messages.0.weight"
    assert set(answer.headers["x-ignored-keys"].split(", ")) == set(named.split(", "))
    streamed = gateway.chat("Hello", stream=True, temprature=1)
    assert streamed.headers["x-ignored-keys"] == "temprature"
    id_ = answer.headers["x-request-id"]
    until(lambda: any(line["request_id"] == id_ for line in gateway.lines()))
    (line,) = (line for line in gateway.lines() if line["request_id"] == id_)
    assert "temprature" in line["ignored_keys"]


def test_of_many_unknown_keys_the_first_are_named(gateway: Running) -> None:
    body = {"x" * 1000 + str(number): 1 for number in range(50)}
    answer = gateway.chat("Hello", max_tokens=1, **body)
    assert answer.status == 200
    assert len(answer.headers["x-ignored-keys"]) == 1024
    id_ = answer.headers["x-request-id"]
    until(lambda: any(line["request_id"] == id_ for line in gateway.lines()))
    (line,) = (line for line in gateway.lines() if line["request_id"] == id_)
    assert line["ignored_keys"] == ["x" * 100] * 20


def test_strict_keys(triton: str, tmp_path: Path) -> None:
    settings = tmp_path / "gateway.yaml"
    settings.write_text("strict_keys: true\n")
    with running(tmp_path, triton, "--settings", str(settings)) as gateway:
        answer = gateway.chat("Hello", temprature=1)
        assert (answer.status, answer.json["error"]["param"]) == (400, "temprature")
        assert "there is no key 'temprature'" in answer.message
        assert gateway.chat("Hello", min_p=0, max_tokens=2).status == 200


def test_ignore_eos_goes_on_to_max_tokens(gateway: Running) -> None:
    short = gateway.chat("Who are you?", max_tokens=60)
    assert short.json["choices"][0]["finish_reason"] == "stop"
    long = gateway.chat("Who are you?", max_tokens=60, ignore_eos=True)
    assert long.json["choices"][0]["finish_reason"] == "length"
    assert long.json["usage"]["completion_tokens"] == 60


def test_stop_token_ids(gateway: Running, tokenizer: Any) -> None:
    whole = gateway.complete(GO, max_tokens=12, logprobs=0).json["choices"][0]
    token = next(t for t in whole["logprobs"]["tokens"][3:] if t.strip().isalpha())
    (id_,) = [i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i) == token][:1]
    stopped = gateway.complete(GO, max_tokens=12, stop_token_ids=[id_]).json["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == whole["text"].partition(token)[0]


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ({"guided_choice": ["red", "blue \"sky\""]}, r'red|blue "sky"'),
        ({"guided_regex": "[a-c]{3}"}, r"[a-c]{3}"),
        ({"guided_json": {"enum": [1, 2]}}, r"\s*[12]"),
        ({"guided_grammar": 'root ::= "yes" | "no"'}, r"yes|no"),
        ({"structured_outputs": {"choice": ["left", "right"]}}, r"left|right"),
        ({"structured_outputs": {"regex": "x{2}"}}, r"xx"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 5}}}},
         r"\s*5"),
    ],
)  # fmt: skip
def test_guides(gateway: Running, key: dict[str, Any], pattern: str) -> None:
    import re

    answer = gateway.chat("Say something", max_tokens=40, **key)
    assert answer.status == 200, answer.text
    assert re.fullmatch(pattern, answer.json["choices"][0]["message"]["content"])


def test_what_this_engine_lacks_is_refused_by_the_clients_own_key(gateway: Running) -> None:
    for key, value in (("logit_bias", {"300": 5}), ("bad_words", ["a"])):
        answer = gateway.chat("Hello", **{key: value})
        assert answer.status == 400
        assert f"{key} is not on this engine" in answer.message
        assert answer.json["error"]["param"] == key
    two = gateway.chat("Hello", guided_regex="a", guided_choice=["b"])
    assert "one kind of structured output" in two.message


def test_usage_in_every_chunk(gateway: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = gateway.chat("Who are you?", stream=True, stream_options=options).events()
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"]
    prompts = {chunk["usage"]["prompt_tokens"] for chunk in (*chunks, last)}
    assert prompts == {last["usage"]["prompt_tokens"]}
