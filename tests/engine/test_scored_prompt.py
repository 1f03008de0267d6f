"""The sequences of a request for scores: what is too long ends at the first of them."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any
from unittest.mock import MagicMock

import pytest

from nemotron_core.errors import NemotronError
from nemotron_core.reward import EMPTY_CONVERSATION

MAX_SEQ_LEN = 50


class CountedTokenizer:
    """Makes one token of each character, and counts the sequences."""

    vocab_size = 2

    def __init__(self) -> None:
        self.sequences: list[int] = []

    def piece(self, id_: int) -> str:
        return "long piece" * 10 if id_ else "a"

    def encode_scored(self, messages: list[dict[str, str]]) -> list[int]:
        ids = [0] * sum(len(message["content"]) for message in messages)
        self.sequences.append(len(ids))
        return ids


class TextInputs:
    """One row of inputs with one text each."""

    def __init__(self, **texts: str) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return 1

    def values(self, _row: int, name: str) -> list[str] | None:
        return [self._texts[name]] if name in self._texts else None

    def value(self, _row: int, name: str, default: str | None = None) -> str | None:
        return self._texts.get(name, default)

    def required(self, _row: int, name: str) -> str:
        return self._texts[name]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Only Triton has this module, which reads its tensors; the rules need none.
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", MagicMock())
    return importlib.import_module("nemotron_engine.triton.scored_prompt")


def build(module: Any, tokenizer: CountedTokenizer, content: str, turns: int) -> Any:
    messages = [{**message, "content": content} for message in EMPTY_CONVERSATION] * turns
    builder = module.ConversationBuilder(tokenizer)
    inputs = TextInputs(messages=json.dumps(messages), turns="all")
    hello = MagicMock(max_seq_len=MAX_SEQ_LEN)
    return builder.build(inputs, MagicMock(seconds=None), "", hello)


def test_every_turn_is_a_sequence(module: Any) -> None:
    prompts = build(module, CountedTokenizer(), "abc", 3)
    assert [answer.num_input_tokens for answer in prompts.answers] == [6, 12, 18]
    assert all(request.scores and not request.max_tokens for request in prompts.requests)


def test_turns_after_the_first_that_is_too_long_are_not_tokenized(module: Any) -> None:
    tokenizer = CountedTokenizer()
    with pytest.raises(NemotronError, match="60 tokens are more than the 50 this model holds"):
        build(module, tokenizer, "a" * 10, 30)
    assert tokenizer.sequences == [20, 40, 60]


def test_texts_that_no_tokenizer_could_shorten_are_not_tokenized(module: Any) -> None:
    tokenizer = CountedTokenizer()
    with pytest.raises(NemotronError, match=r"more than 50 tokens can hold.*never cut"):
        build(module, tokenizer, "a" * 100 * MAX_SEQ_LEN, 1)
    assert not tokenizer.sequences
