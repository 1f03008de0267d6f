"""The table of sampling in docs/contract.md, against the probabilities of transformers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from nemotron_core.text import Tokenizer
from nemotron_serve.model_server import ModelServer
from tests.engine.requests import NEVER
from tests.engine.test_openvino import round_norms
from tests.serve.test_batches import column
from tests.serve.wire import TEXT_MODELS, infer, stream, whole
from tests.tiny_nemotron.reference import greedy, load_hf_model

PROMPT = "<extra_id_1>User\nTell me"
LENGTH = 12
SEEDS = 2000
PER_REQUEST = 50
LEAST_P = 1e-6
"""The seeds decide the tokens, so a test that passes once passes always."""
MODELS = (*TEXT_MODELS, "tensorrt_llm")
GREEDY: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "top_k": 50, "top_p": 0.9},
    {"temperature": 9e-6, "top_k": 50, "top_p": 0.9, "seed": 1},
    {"temperature": 2.0, "top_k": 1, "top_p": 0.9},
    {"top_k": 1},
    {"temperature": 2.0},
    {"temperature": 2.0, "top_k": 0, "top_p": 0.0, "seed": 3},
    {"seed": 5},
]
DRAWN: list[dict[str, Any]] = [
    {"temperature": 2.0, "top_p": 1.0},
    {"temperature": 2.0, "top_k": 50},
    {"temperature": 2.0, "top_k": 0, "top_p": 0.99},
]


@pytest.fixture(scope="module")
def logits(tokenizer: Tokenizer) -> torch.Tensor:
    """The logits of the first token after the prompt."""
    model = load_hf_model()
    round_norms(model)
    with torch.inference_mode():
        return model(torch.tensor([tokenizer.encode(PROMPT)])).logits[0, -1].double()


def ask(server: ModelServer, model: str, tokenizer: Tokenizer, **settings: Any) -> list[list[int]]:
    """Return the tokens of all answers to the prompt."""
    count = settings.pop("count", 1)
    settings |= {"num_return_sequences": count, "end_id": -1}
    if model != "tensorrt_llm":
        response = whole(server, model, text_input=PROMPT, max_tokens=LENGTH, **settings)
        return [list(ids) for ids in response["output_token_ids"]]
    for name in ("top_k", "top_p"):
        if name in settings:
            settings[f"runtime_{name}"] = settings.pop(name)
    ids = tokenizer.encode(PROMPT)
    prompt = {"input_ids": ids, "input_lengths": len(ids), "request_output_len": LENGTH}
    (response,) = stream(server, model, **prompt, **settings)
    return [list(rows[0]) for rows in response["output_ids"]]


@pytest.fixture(scope="module")
def most_likely(tokenizer: Tokenizer) -> list[int]:
    prompts = [tokenizer.encode(PROMPT)]
    (ids,) = greedy(load_hf_model(), prompts, max_tokens=LENGTH, end_id=NEVER)
    return ids


@pytest.mark.parametrize("model", MODELS)
def test_what_is_greedy(
    model: str, server: ModelServer, tokenizer: Tokenizer, most_likely: list[int]
) -> None:
    for settings in GREEDY:
        assert ask(server, model, tokenizer, **settings) == [most_likely], settings


@pytest.mark.parametrize("model", MODELS)
def test_what_is_drawn_and_its_seed(model: str, server: ModelServer, tokenizer: Tokenizer) -> None:
    for settings in DRAWN:
        fresh = [ask(server, model, tokenizer, **settings)[0] for _ in range(3)]
        assert len({*map(tuple, fresh)}) == 3, settings
        for seed in (0, 4, 2**64 - 1):
            first, again, older = (
                ask(server, model, tokenizer, **settings, **{name: seed})
                for name in ("seed", "seed", "random_seed")
            )
            assert first == again == older, settings
        several = ask(server, model, tokenizer, **settings, seed=4, count=2)
        alone = [ask(server, model, tokenizer, **settings, seed=seed)[0] for seed in (4, 5)]
        assert several == alone
        assert several[0] != several[1]


def first_tokens(server: ModelServer, **settings: Any) -> Counter[int]:
    """Return how often each token came first, with the seeds 0 to `SEEDS` - 1."""
    tokens: Counter[int] = Counter()
    rows = 8
    for start in range(0, SEEDS, rows * PER_REQUEST):
        seeds = [start + row * PER_REQUEST for row in range(rows)]
        fields = {"text_input": PROMPT, "max_tokens": 1, "num_return_sequences": PER_REQUEST}
        fields |= settings
        repeated = {name: column(*[value] * rows) for name, value in fields.items()}
        response = infer(server, **repeated, seed=column(*seeds))
        tokens.update(response["output_token_ids"][:, 0].tolist())
    assert tokens.total() == SEEDS
    return tokens


def p_value(tokens: Counter[int], expected: torch.Tensor) -> float:
    """Return the p-value of a chi-square test; tokens expected less than 5 times are one bin."""
    counts = torch.zeros_like(expected)
    for id_, count in tokens.items():
        counts[id_] = count
    assert not counts[expected == 0].any()  # what cannot come has not come
    numbers = expected * SEEDS
    is_rare = numbers < 5
    observed = torch.cat([counts[~is_rare], counts[is_rare].sum()[None]])
    numbers = torch.cat([numbers[~is_rare], numbers[is_rare].sum()[None]])
    observed, numbers = observed[numbers > 0], numbers[numbers > 0]
    statistic = ((observed - numbers) ** 2 / numbers).sum()
    freedom = torch.tensor(len(numbers) - 1.0, dtype=torch.float64)
    assert freedom > 1
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def limited(probabilities: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Return the probabilities of the tokens `keep` alone."""
    kept = torch.zeros_like(probabilities)
    kept[keep] = probabilities[keep]
    return kept / kept.sum()


def clear_top(logits: torch.Tensor) -> torch.Tensor:
    """Return the 4 to 12 most probable tokens, so many that no rounding decides which belong."""
    ordered, order = logits.sort(descending=True)
    gaps = ordered[3:12] - ordered[4:13]
    return order[: 4 + int(gaps.argmax())]


@pytest.mark.parametrize("temperature", [None, 0.7, 2.0])
def test_top_k_alone_and_with_a_temperature(
    temperature: float | None, server: ModelServer, logits: torch.Tensor
) -> None:
    settings = {} if temperature is None else {"temperature": temperature}
    probabilities = (logits / (temperature or 1.0)).softmax(-1)
    top = clear_top(logits)
    expected = limited(probabilities, top)
    tokens = first_tokens(server, top_k=len(top), **settings)
    assert p_value(tokens, expected) > LEAST_P
    # The test can tell: another temperature's probabilities are no match.
    other = limited((logits / (temperature or 1.0) / 1.5).softmax(-1), top)
    assert p_value(tokens, other) < LEAST_P


def test_top_p_alone_draws_at_temperature_1_within_it(
    server: ModelServer, logits: torch.Tensor
) -> None:
    probabilities = logits.softmax(-1)
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    top_p = 0.5 * float(before[5] + before[6])  # no rounding decides which tokens belong to it
    expected = limited(probabilities, order[before < top_p])
    assert 3 <= int((expected > 0).sum()) <= 12
    assert p_value(first_tokens(server, top_p=top_p), expected) > LEAST_P


def test_a_temperature_with_top_p_1_draws_over_the_whole_vocabulary(
    server: ModelServer, logits: torch.Tensor
) -> None:
    tokens = first_tokens(server, temperature=1.5, top_p=1.0)
    assert len(tokens) > 50
    assert p_value(tokens, (logits / 1.5).softmax(-1)) > LEAST_P
