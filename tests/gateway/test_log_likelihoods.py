"""Log-probabilities of texts and of other tokens, as evaluation harnesses need them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from nemotron_core.generation import Piece
from nemotron_core.openai.answer import AnswerOptions, CompletionAnswer
from nemotron_core.openai.token_texts import TextOffsets
from nemotron_core.text import Tokenizer
from tests.gateway.process import Running

PROMPT = "<extra_id_1>Go to the café"
LM_EVAL: dict[str, Any] = {"max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}


def test_what_lm_eval_reads(gateway: Running, tokenizer: Tokenizer) -> None:
    """Its request, and every value that it takes from the answer."""
    prompts = [tokenizer.encode(PROMPT), tokenizer.encode("<extra_id_1>Hello there")]
    answer = gateway.complete(prompts, **LM_EVAL)
    assert answer.status == 200, answer.text
    for index, (choice, ids) in enumerate(zip(answer.json["choices"], prompts, strict=True)):
        assert choice["index"] == index
        log_probs = choice["logprobs"]
        values, tops = log_probs["token_logprobs"], log_probs["top_logprobs"]
        assert len(values) == len(tops) == len(log_probs["tokens"]) == len(ids) + 1
        assert values[0] is None
        assert tops[0] is None
        for token, value, top in zip(log_probs["tokens"][1:], values[1:], tops[1:], strict=True):
            assert value <= max(top.values()) <= 0
            assert top[token] >= value
        assert max(tops[-1].values()) == values[-1]  # the generated token is the greedy one
        offsets = log_probs["text_offset"]
        for (start, token), (end, _) in pairwise(zip(offsets, log_probs["tokens"], strict=True)):
            assert token.startswith("bytes:") or choice["text"][start:end] == token


def test_scoring_alone(gateway: Running, tokenizer: Tokenizer) -> None:
    """With `max_tokens` 0 there are the prompt's tokens only, sampled or not."""
    ids = tokenizer.encode(PROMPT)
    one = gateway.complete(ids, **LM_EVAL).json["choices"][0]["logprobs"]
    sampling = {"max_tokens": 0, "temperature": 1, "top_p": 0.5, "seed": None}
    answer = gateway.complete(PROMPT, **LM_EVAL | sampling).json
    (choice,) = answer["choices"]
    assert choice["text"] == PROMPT
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == one["token_logprobs"][:-1]
    assert choice["logprobs"]["text_offset"] == one["text_offset"][:-1]
    assert answer["usage"]["completion_tokens"] == 0
    no_alternatives = gateway.complete(PROMPT, echo=True, logprobs=0, max_tokens=0).json
    log_probs = no_alternatives["choices"][0]["logprobs"]
    assert log_probs["token_logprobs"] == one["token_logprobs"][:-1]
    assert log_probs["top_logprobs"] is None


def test_several_answers_with_an_echo(gateway: Running) -> None:
    answer = gateway.complete([PROMPT, "Hi"], **LM_EVAL, n=2).json
    texts = [choice["text"] for choice in answer["choices"]]
    assert [text.startswith(p) for text, p in zip(texts, [PROMPT] * 2 + ["Hi"] * 2, strict=True)]
    assert texts[0] == texts[1] != texts[2] == texts[3]


def test_prompt_log_probs(gateway: Running, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPT)
    answer = gateway.complete(PROMPT, prompt_logprobs=2, max_tokens=1)
    first, *rows = answer.json["choices"][0]["prompt_logprobs"]
    assert first is None
    echoed = gateway.complete(PROMPT, **LM_EVAL).json["choices"][0]["logprobs"]
    for id_, row, value in zip(ids[1:], rows, echoed["token_logprobs"][1:], strict=False):
        assert 2 <= len(row) <= 3
        assert row[str(id_)]["logprob"] == value
        assert {entry["rank"] for entry in row.values()} >= {1, 2}
    chat = gateway.chat("Who are you?", prompt_logprobs=0, max_tokens=1).json
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    streamed = gateway.chat("Hi", prompt_logprobs=0, stream=True)
    assert "prompt_logprobs is not for stream" in streamed.message


def test_top_log_probs_of_a_chat(gateway: Running) -> None:
    answer = gateway.chat("Who are you?", logprobs=True, top_logprobs=3, max_tokens=1).json
    (token,) = answer["choices"][0]["logprobs"]["content"]
    assert len(token["top_logprobs"]) == 3
    assert token["top_logprobs"][0]["token"] == token["token"]
    assert token["top_logprobs"][0]["logprob"] == token["logprob"]
    assert bytes(token["bytes"]).decode() == token["token"]
    more = gateway.chat("Who are you?", logprobs=True, top_logprobs=3)
    assert more.status == 400
    assert "only for prompts and one new token" in more.message
    assert more.json["error"]["param"] == "max_tokens"
    sampled = gateway.chat("Hi", logprobs=True, top_logprobs=3, max_tokens=1, temperature=1)
    assert "without temperature" in sampled.message
    assert "set it to 0" in sampled.message


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    return [tokenizer.id_of(f"<0x{byte:02X}>") or 0 for byte in data]


@pytest.mark.parametrize(
    ("data", "offsets"),
    [
        ("é".encode(), [1, 1]),
        ("日".encode(), [1, 1, 1]),
        (b"\xe6\x97", [1, 2]),
        (b"\xff\xfe", [1, 2]),
        (b"\xe6\xc3\xa9", [1, 2, 2]),
        ("\ufffd".encode(), [1, 1, 1]),
        (b"\xef\xbf\xef\xbf\xbd", [1, 2, 3, 3, 3]),
    ],
)
def test_offsets_of_bytes(tokenizer: Tokenizer, data: bytes, offsets: list[int]) -> None:
    """Between two letters, in one piece and token by token; the text is what the answer says."""
    letter = tokenizer.encode("\na")[-1:]
    ids = [*letter, *byte_ids(tokenizer, data), *letter]
    text = tokenizer.decode(ids)
    expected = [0, *offsets, len(text) - 1]
    assert TextOffsets(tokenizer).push(ids) == expected
    stepwise = TextOffsets(tokenizer)
    assert [place for id_ in ids for place in stepwise.push([id_])] == expected
    for start, id_ in zip(expected, ids, strict=True):
        own = tokenizer.token_text(id_)
        if isinstance(own, str):
            assert text[start : start + len(own)] == own


def test_a_character_that_is_cut_off(tokenizer: Tokenizer) -> None:
    """Its tokens come with the last chunk of a stream, at the end of the text."""
    ids = byte_ids(tokenizer, b"\xe6\x97")
    letter = tokenizer.encode("\na")[-1]
    answer = CompletionAnswer("m", AnswerOptions(tokenizer=tokenizer, top=0))
    first = Piece("a", (letter, ids[0]), log_probs=(-1.0, -2.0))
    last = Piece("", (ids[1],), "length", log_probs=(-3.0,))
    chunks = [*answer.chunks(0, first), *answer.chunks(0, last)]
    log_probs = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert [lp["text_offset"] for lp in log_probs] == [[0], [1, 1]]
    assert [lp["token_logprobs"] for lp in log_probs] == [[-1.0], [-2.0, -3.0]]
