"""`PUT /generate` beside a reference of NeMo's rules, on generated requests."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from nemotron_core.text import Tokenizer
from nemotron_serve.model_server import ModelServer
from tests.gateway import nemo_reference
from tests.gateway.process import Running
from tests.serve.wire import whole

COUNT = 500
MOST_TOKENS = 9
PROMPTS = (
    *("<extra_id_1>Go", "Hello there", "<extra_id_0>System\n\n<extra_id_1>User\nWho are you?\n"),
    *("<extra_id_1>User\nWhy is the sky blue?\n<extra_id_1>Assistant\n", "日本", "a  b ", "\n"),
    *("café <extra_id_1>", "I am", "1 + 1 =", "", "The"),
)
RIGHT: dict[str, Sequence[Any]] = {
    "tokens_to_generate": (1, 2, 5, MOST_TOKENS),
    "all_probs": (False,),
    "temperature": (0.1, 1, 2.5, 100),
    "add_BOS": (True, False),
    "top_k": (0, 1, 40, 40.0, 2.5),
    "top_p": (0, 0.5, 1, 1.0),
    "repetition_penalty": (1, 1.0, 1.5, 7),
    "end_strings": (
        *([], [""], ["<|endoftext|>", "<extra_id_1>", "\x11", "<extra_id_1>User"]),
        *(["<extra_id_1>"], ["e"], [" a", "."], ["the"], ["</s>"], ["\n", "zzz"]),
    ),
    "min_tokens_to_generate": (0, 1, 3, 50),
    "compute_logprob": (True, False),
    "random_seed": (None, 0, 5, 2**63),
    "nonsense": (None, "x", {"a": 1}),
}
WRONG: dict[str, Sequence[Any]] = {
    "sentences": ("text", [], [1], None, {}, [["a"]], ["a"] * 129, 5),
    "tokens_to_generate": (0, -1, "5", 1.5, None, [1]),
    "all_probs": (True, 1, "no", None),
    "temperature": (0, -1, 100.5, "1", None),
    "add_BOS": (0, "yes", None),
    "greedy": (1, "yes", None),
    "top_k": (-1, -0.5, "1", None, True),
    "top_p": (-0.1, 1.1, "1", None),
    "repetition_penalty": (0.9, 0, "2", None),
    "end_strings": ("x", [1], None, [None]),
    "min_tokens_to_generate": (-1, 0.5, "1", None),
    "compute_logprob": (1, "yes", None),
    "random_seed": (-1, 0.5, "1"),
}


def body(rng: random.Random) -> Any:
    if rng.random() < 0.03:
        return rng.choice([[], "text", 5, None, {}, {"sentence": ["a"]}])
    prompts = PROMPTS if rng.random() < 0.1 else [prompt for prompt in PROMPTS if prompt]
    content: dict[str, Any] = {
        "sentences": rng.choices(prompts, k=rng.choice([1, 1, 2, 3])),
        "tokens_to_generate": rng.randrange(1, MOST_TOKENS + 1),
        "greedy": True,
    }
    for key, values in RIGHT.items():
        if rng.random() < 0.4:
            content[key] = rng.choice(values)
    for key in rng.sample(list(WRONG), k=rng.choice([0, 0, 0, 1, 2])):
        content[key] = rng.choice(WRONG[key])
    if rng.random() < 0.05:
        del content["sentences"]
    return dict(rng.sample(list(content.items()), k=len(content)))


@pytest.fixture(scope="module")
def greedy(server: ModelServer, tokenizer: Tokenizer) -> nemo_reference.Tokens:
    """The model's own tokens, straight from Triton, which nothing ends."""
    known: dict[tuple[int, ...], list[tuple[int, float]]] = {}

    def tokens(prompt: Sequence[int], count: int) -> list[tuple[int, float]]:
        if tuple(prompt) not in known:
            settings = {"max_tokens": MOST_TOKENS, "end_id": -1, "return_log_probs": True}
            outputs = whole(server, "generate", input_token_ids=list(prompt), **settings)
            ids = outputs["output_token_ids"].ravel().tolist()
            assert tokenizer.id_of("</s>") not in ids  # or the minimum would matter
            known[tuple(prompt)] = list(
                zip(ids, outputs["output_log_probs"].ravel().tolist(), strict=True)
            )
        return known[tuple(prompt)][:count]

    return tokens


def test_as_the_reference(
    gateway: Running, tokenizer: Tokenizer, greedy: nemo_reference.Tokens
) -> None:
    rng = random.Random(340)
    outcomes: Counter[str] = Counter()
    for number in range(COUNT):
        sent = body(rng)
        answer = gateway.ask("PUT", "/generate", json.dumps(sent).encode())
        expected = nemo_reference.answer(sent, tokenizer, greedy)
        where = f"body {number}: {sent!r}"
        if expected.content is None:
            outcomes[expected.error] += 1
            assert answer.status == 400, (where, answer.text)
            assert answer.json.startswith(expected.error), where
            continue
        outcomes["answered"] += 1
        assert answer.status == 200, (where, answer.text)
        content = answer.json
        log_probs, values = content.pop("logprob"), expected.content.pop("logprob")
        assert content == expected.content, where
        assert (log_probs is None) == (values is None), where
        for row, reference in zip(log_probs or [], values or [], strict=True):
            assert len(row) == len(reference), where
            assert all(value is not None and value <= 0 for value in row), where
            generated = [value for value in reference if value is not None]
            begin = len(row) - len(generated)
            assert row[begin:] == pytest.approx(generated, abs=0.05), where
    assert outcomes["answered"] > COUNT / 3
    assert len(outcomes) > 12  # nearly every check was met


def test_the_prompts_log_probabilities(gateway: Running, tokenizer: Tokenizer) -> None:
    """As NeMo: of every token but the first; the other API says the same of the text."""
    prompt = PROMPTS[3]
    settings = {"greedy": True, "tokens_to_generate": 1, "compute_logprob": True}
    answer = gateway.ask("PUT", "/generate", {"sentences": [prompt]} | settings).json
    scored = gateway.complete(prompt, echo=True, logprobs=0, max_tokens=0).json
    expected = scored["choices"][0]["logprobs"]["token_logprobs"]
    assert answer["logprob"][0][:-1] == expected[1:]


def test_equal_sentences_with_a_seed_differ_and_repeat(gateway: Running) -> None:
    sent = {"sentences": [""] * 8, "add_BOS": True, "random_seed": 11, "temperature": 5.0,
            "top_p": 1.0, "tokens_to_generate": 6, "end_strings": []}  # fmt: skip
    first = gateway.ask("PUT", "/generate", sent)
    assert first.status == 200, first.text
    assert len(set(first.json["sentences"])) > 4
    assert gateway.ask("PUT", "/generate", sent).json == first.json
    other = gateway.ask("PUT", "/generate", sent | {"random_seed": 12}).json
    assert other["sentences"] != first.json["sentences"]
    unseeded = [gateway.ask("PUT", "/generate", sent | {"random_seed": None}).json["sentences"]
                for _ in range(2)]  # fmt: skip
    assert unseeded[0] != unseeded[1]


def test_greedy_knows_no_penalty(gateway: Running) -> None:
    sent = {"sentences": [PROMPTS[0]], "greedy": True, "tokens_to_generate": 30}
    plain = gateway.ask("PUT", "/generate", sent).json
    more = {"repetition_penalty": 5.0, "temperature": 50, "top_k": 7.0, "top_p": 0.1}
    assert gateway.ask("PUT", "/generate", sent | more).json == plain


@pytest.mark.parametrize(
    "data", [b'{"sentences": ["\\ud800"]}', b'{"sentences": ["a\\udfff"]}', b'{"sentences": [NaN]}',
             b"{", b"", b"\xff", b'"text"']
)  # fmt: skip
def test_bodies_that_are_no_requests(gateway: Running, data: bytes) -> None:
    answer = gateway.ask("PUT", "/generate", data)
    assert answer.status == 400
    assert isinstance(answer.json, str)


def test_long_sentences_hold_up_nobody(gateway: Running) -> None:
    """800 kB, far more than the model holds: refused, while others are served."""
    long = "The quick brown fox jumps over the lazy dog. " * 18_000
    answer = gateway.ask("PUT", "/generate", {"sentences": [long], "greedy": True})
    assert answer.status == 400
    assert "more than the 4096 this model holds [sentences[0]]" in answer.json
    many = {"sentences": ["a b c d e f g h " * 200] * 64, "greedy": True, "tokens_to_generate": 1}
    answer = gateway.ask("PUT", "/generate", many)
    assert answer.status == 200, answer.text
    assert len({json.dumps(row) for row in answer.json["offsets"]}) == 1
