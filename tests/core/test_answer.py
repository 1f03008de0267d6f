"""An answer's text against a definition by brute force, for any split of its tokens."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemotron_core.text import AnswerStream
from tests.core.references import (
    CUTS,
    TOKENS,
    VOCABULARY,
    cut_at_stop,
    decode,
    split,
    without_undecided,
)

END = VOCABULARY.END
STOPS = st.lists(st.sampled_from(["\n", "a", "ab\nb", "b\n", "rd", "日", "�", "\n\n"]), max_size=3)
A, B, NEWLINE, AB_NEWLINE = (
    256 + VOCABULARY.words.index(word) for word in ("a", "b", "\n", "ab\n")
)
DENSE = st.lists(st.sampled_from([A, B, NEWLINE, NEWLINE, AB_NEWLINE, *"日".encode()]), max_size=12)
"""Tokens of which nearly every one begins, goes on or ends a stop string, a line or a character."""


def visible(ids: list[int], stops: list[str], chat: bool) -> str:
    """The text that is final after these tokens, while more may come."""
    text, matched = cut_at_stop(decode(ids), stops)
    if matched is not None:
        return text
    text = without_undecided(text, stops)
    return text[:-1] if chat and text.endswith("\n") else text


@given(
    ids=DENSE | TOKENS,
    cuts=CUTS,
    stops=STOPS,
    chat=st.booleans(),
    reason=st.sampled_from(["stop", "length", "cancelled"]),
)
@example(ids=[A, NEWLINE], cuts=[1], stops=[], chat=True, reason="stop")
@example(ids=[A, NEWLINE], cuts=[1], stops=[], chat=True, reason="length")
@example(ids=[NEWLINE, NEWLINE], cuts=[1], stops=[], chat=True, reason="cancelled")
@example(ids=[NEWLINE, A, B], cuts=[1, 2], stops=[], chat=True, reason="stop")
@example(ids=[A, NEWLINE], cuts=[1], stops=["\n"], chat=True, reason="stop")
@example(ids=[NEWLINE, A], cuts=[1], stops=["a"], chat=True, reason="stop")
@example(ids=[A, B], cuts=[1], stops=["ab\nb"], chat=False, reason="stop")
@example(ids=[A, AB_NEWLINE], cuts=[1], stops=["ab\nb"], chat=True, reason="stop")
@settings(max_examples=300)
def test_an_answer_is_what_the_definition_says_in_any_pieces(
    ids: list[int], cuts: list[int], stops: list[str], chat: bool, reason: str
) -> None:
    answer = AnswerStream(VOCABULARY, chat=chat, end_ids=(END,), stop_strings=stops)
    *parts, last = split(ids, cuts)
    pushed: list[int] = []
    text = ""
    for part in parts:
        pushed += part
        text += answer.push(part)
        assert text == visible(pushed, stops, chat)
    text += answer.push([*last, END] if reason == "stop" else last, reason)
    expected, matched = cut_at_stop(decode(ids), stops)
    if chat and reason == "stop" and matched is None and expected.endswith("\n"):
        expected = expected[:-1]
    assert (text, answer.stop_reason) == (expected, matched)


@pytest.mark.parametrize(
    ("ids", "reason", "expected"),
    [
        ([257, END], "stop", "a"),
        ([257, END], "length", "a"),  # a control token never has text
        ([257, 258], "stop", "ab"),  # the last token is no end token: it is text
        ([], "stop", ""),
        ([END, 257, END], "stop", "a"),
    ],
)
def test_only_an_end_token_is_left_out(ids: list[int], reason: str, expected: str) -> None:
    assert AnswerStream(VOCABULARY, chat=False, end_ids=(END,)).push(ids, reason) == expected


def test_an_end_id_may_be_any_token() -> None:
    answer = AnswerStream(VOCABULARY, chat=False, end_ids=(258,))
    assert answer.push([257, 258, 257]) == "aba"
    assert answer.push([257, 258]) == "ab"
    assert answer.push([257, 258], "stop") == "a"
    assert AnswerStream(VOCABULARY, chat=False, end_ids=(258,)).push([258], "length") == "b"


def test_bytes_before_the_end_of_an_answer_are_dropped() -> None:
    """The end token is left out, so it does not make them replacement characters."""
    answer = AnswerStream(VOCABULARY, chat=False, end_ids=(END,))
    assert answer.push([257, *"日".encode()[:2], END], "stop") == "a"
