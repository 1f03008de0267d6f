"""`PUT /generate`: the model card's script, and every key as NeMo's server takes it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.text import Tokenizer, render_prompt
from nemotron_gateway.nemo_schema import GenerateRequest
from tests.gateway.process import Answer, Running
from tests.tiny_nemotron.answers import ExactAnswer

# The card's client, with its prompt template and its call.
SCRIPT = '''
import json
import requests

headers = {"Content-Type": "application/json"}

def text_generation(data, ip='localhost', port=None):
    resp = requests.put(f'http://{ip}:{port}/generate', data=json.dumps(data), headers=headers)
    return resp.json()


def get_generation(prompt, greedy, add_BOS, token_to_gen, min_tokens, temp, top_p, top_k, repetition, batch=False):
    data = {
        "sentences": [prompt] if not batch else prompt,
        "tokens_to_generate": int(token_to_gen),
        "temperature": temp,
        "add_BOS": add_BOS,
        "top_k": top_k,
        "top_p": top_p,
        "greedy": greedy,
        "all_probs": False,
        "repetition_penalty": repetition,
        "min_tokens_to_generate": int(min_tokens),
        "end_strings": ["<|endoftext|>", "<extra_id_1>", "\\x11", "<extra_id_1>User"],
    }
    sentences = text_generation(data, port=1424)['sentences']
    return sentences[0] if not batch else sentences

PROMPT_TEMPLATE = """<extra_id_0>System

<extra_id_1>User
{prompt}
<extra_id_1>Assistant
"""

question = "Write a poem on NVIDIA in the style of Shakespeare"
prompt = PROMPT_TEMPLATE.format(prompt=question)
print(prompt)

response = get_generation(prompt, greedy=True, add_BOS=False, token_to_gen=1024, min_tokens=1, temp=1.0, top_p=1.0, top_k=0, repetition=1.0, batch=False)
response = response[len(prompt):]
if response.endswith("<extra_id_1>"):
    response = response[:-len("<extra_id_1>")]
print(response)
'''  # noqa: E501
ALL_DEFAULTS = {
    name: key.default for name, key in GenerateRequest.model_fields.items() if name != "sentences"
}


def put(gateway: Running, sentences: Any, **more: Any) -> Answer:
    return gateway.ask("PUT", "/generate", {"sentences": sentences, "greedy": True} | more)


def prompt_of(exact: ExactAnswer) -> str:
    return render_prompt([message.as_dict() for message in exact.question.messages])  # type: ignore[misc]


def test_the_card_s_script(
    gateway: Running,
    answers: list[ExactAnswer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The script as it is, but for its port, which may be taken here, and its question."""
    import requests

    real = requests.put

    def to_this_port(url: str, **more: Any) -> Any:
        return real(url.replace(":1424/", f":{gateway.port}/"), **more)

    monkeypatch.setattr(requests, "put", to_this_port)
    exact = next(a for a in answers if len(a.question.messages) == 1)
    script = tmp_path / "card.py"
    question = exact.question.messages[0].content
    script.write_text(
        SCRIPT.replace('"Write a poem on NVIDIA in the style of Shakespeare"', repr(question))
    )
    variables = runpy.run_path(str(script))
    assert variables["prompt"] == prompt_of(exact)
    assert variables["response"] == exact.question.answer + "\n"
    assert exact.question.answer in capsys.readouterr().out


def test_everything_it_answers(
    gateway: Running, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    exact = answers[0]
    prompt = prompt_of(exact)
    content = put(gateway, [prompt], end_strings=["<extra_id_1>"], tokens_to_generate=300).json
    assert set(content) == {"sentences", "tokens", "logprob", "token_ids", "offsets"}
    (sentence,), (ids,), (tokens,), (offsets,) = (
        content[key] for key in ("sentences", "token_ids", "tokens", "offsets")
    )
    assert sentence == prompt + exact.question.answer + "\n<extra_id_1>"
    assert ids == tokenizer.encode(prompt) + exact.token_ids
    assert tokens == [tokenizer.piece(id_) for id_ in ids]
    assert tokens[-1] == "<extra_id_1>"
    assert content["logprob"] is None
    assert len(offsets) == len(ids)
    for start, end, token in zip(offsets, [*offsets[1:], len(sentence)], tokens, strict=True):
        assert token.startswith("<0x") or sentence[start:end] == token.replace("▁", " ")


def test_sentences_come_back_in_order(gateway: Running, answers: list[ExactAnswer]) -> None:
    some = answers[::15]
    content = put(
        gateway,
        [prompt_of(exact) for exact in some],
        end_strings=["<extra_id_1>"],
        tokens_to_generate=300,
    ).json
    assert content["sentences"] == [
        prompt_of(exact) + exact.question.answer + "\n<extra_id_1>" for exact in some
    ]


def test_log_probs(gateway: Running, tokenizer: Tokenizer) -> None:
    prompt = "<extra_id_1>Go"
    content = put(gateway, [prompt], tokens_to_generate=6, compute_logprob=True).json
    ids, log_probs = content["token_ids"][0], content["logprob"][0]
    # There is an entry for each token but the first.
    assert len(log_probs) == len(ids) - 1 == len(tokenizer.encode(prompt)) + 6 - 1
    assert all(-30 < log_prob <= 0 for log_prob in log_probs)


def test_an_end_string_stays_in_the_text(gateway: Running, answers: list[ExactAnswer]) -> None:
    exact = answers[0]
    answer = exact.question.answer
    end_string = answer[: answer.index(" ", 10)]
    content = put(
        gateway, [prompt_of(exact)], end_strings=[end_string, ""], tokens_to_generate=300
    ).json
    assert content["sentences"] == [prompt_of(exact) + end_string]


def test_without_the_end_of_turn_it_goes_on(gateway: Running, answers: list[ExactAnswer]) -> None:
    """NeMo ends at `</s>`, and at `<extra_id_1>` only if that is an end string."""
    exact = answers[0]
    settings: Any = {"tokens_to_generate": len(exact.token_ids) + 5}
    (sentence,) = put(gateway, [prompt_of(exact)], **settings).json["sentences"]
    assert sentence.startswith(prompt_of(exact) + exact.question.answer + "\n<extra_id_1>")
    assert not sentence.endswith("<extra_id_1>")


def test_the_least_number_of_tokens(gateway: Running, answers: list[ExactAnswer]) -> None:
    exact = answers[0]
    content = put(
        gateway,
        [prompt_of(exact)],
        end_strings=[],
        tokens_to_generate=300,
        min_tokens_to_generate=len(exact.token_ids) + 3,
    ).json
    prompt_tokens = put(gateway, [prompt_of(exact)], tokens_to_generate=1).json["token_ids"][0][:-1]
    assert len(content["token_ids"][0]) >= len(prompt_tokens) + len(exact.token_ids) + 3
    # As in NeMo, it keeps the model from `</s>`, and end strings end the answer all the same.
    (sentence,) = put(
        gateway,
        [prompt_of(exact)],
        end_strings=["<extra_id_1>"],
        tokens_to_generate=300,
        min_tokens_to_generate=len(exact.token_ids) + 3,
    ).json["sentences"]
    assert sentence == prompt_of(exact) + exact.question.answer + "\n<extra_id_1>"


def test_defaults_seeds_and_unknown_keys(gateway: Running) -> None:
    def ask(**more: Any) -> list[str]:
        answer = put(gateway, ["<extra_id_1>Go"], greedy=False, tokens_to_generate=12, **more)
        assert answer.status == 200, answer.text
        sentences: list[str] = answer.json["sentences"]
        return sentences

    assert ask(random_seed=4, temperature=3.0) == ask(random_seed=4, temperature=3.0)
    assert len({*(ask(temperature=3.0, top_p=1.0)[0] for _ in range(5))}) > 1
    assert ask(random_seed=4, nonsense="ignored", task="x") == ask(random_seed=4)
    plain = gateway.ask("PUT", "/generate", {"sentences": ["Hello"]})
    explicit = gateway.ask("PUT", "/generate", {"sentences": ["Hello"]} | ALL_DEFAULTS)
    assert plain.status == explicit.status == 200
    assert ask(top_k=1) == ask(top_k=1)
    assert ask(top_p=0, temperature=100, repetition_penalty=1.5)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("sentences", ["text", [], [1], None], "sentences must be a list of strings"),
        ("sentences", [["a"] * 129], "Maximum number of sentences is 128"),
        ("tokens_to_generate", [0, "5", 1.5, True],
         "tokens_to_generate must be an integer greater than 0"),
        ("all_probs", [1, "no"], "all_probs must be a boolean value"),
        ("temperature", [0, -1, 100.5, "1"],
         "temperature must be a positive number less than or equal to 100.0"),
        ("add_BOS", [0], "add_BOS must be a boolean value"),
        ("greedy", [1], "greedy must be a boolean value"),
        ("top_k", [-1, "1"], "top_k must be a positive integer number"),
        ("top_p", [-0.1, 1.1], "top_p must be a positive number less than or equal to 1.0"),
        ("repetition_penalty", [0.9, "2"],
         "repetition_penalty must be a positive number no less than 1.0"),
        ("end_strings", ["x", [1]], "expect end_strings to be a list of strings"),
        ("min_tokens_to_generate", [-1, 0.5],
         "min_tokens_to_generate must be an integer no less than 0"),
        ("compute_logprob", ["yes"], "compute_logprob must be a boolean value"),
        ("random_seed", [-1, 0.5], "random_seed must be a positive integer number or None"),
    ],
)  # fmt: skip
def test_nemo_s_own_words(gateway: Running, key: str, values: list[Any], message: str) -> None:
    for value in values:
        answer = put(gateway, **{"sentences": ["Hello"]} | {key: value})
        assert (answer.status, answer.json) == (400, message)


def test_other_errors(gateway: Running) -> None:
    for body, message in [
        ({}, "sentences is missing"),
        ([], "sentences is missing"),
        ({"sentences": ["a"], "all_probs": True}, "all_probs is not served"),
        ({"sentences": ["a"], "tokens_to_generate": 5000}, "more than the 4096"),
        ({"sentences": ["a", ""]}, "a sentence is empty"),
    ]:
        answer = gateway.ask("PUT", "/generate", body)
        assert answer.status == 400
        assert message in answer.json
    assert json.loads(gateway.ask("PUT", "/generate", b"{").text).startswith("the body is not JSON")
