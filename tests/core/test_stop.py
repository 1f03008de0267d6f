"""Stop strings against a definition by brute force, for any split of the text into pieces."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nemotron_core.errors import NemotronError
from nemotron_core.text import StopStrings
from tests.core.references import CUTS, cut_at_stop, split, without_undecided


@st.composite
def texts_and_stops(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text and stop strings that overlap in it: parts of it, longer ones, and others."""
    text = draw(st.text(alphabet="ab\n", max_size=20))
    stops = []
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        part = text[start : start + draw(st.integers(1, 6))]
        stops.append(part + draw(st.sampled_from(["", "", "a", "c"])))
    stops += draw(st.lists(st.text(alphabet="ab\n", min_size=1, max_size=3), max_size=2))
    return text, [stop for stop in stops if stop]


@given(drawn=texts_and_stops(), cuts=CUTS)
@example(drawn=("abc", ["abc", "b"]), cuts=[])  # the shorter one ends first
@example(drawn=("abc", ["bc", "abc"]), cuts=[2])  # both end at once: the longer one
@example(drawn=("aab", ["ab"]), cuts=[1, 2])  # the second beginning is the right one
@example(drawn=("abab", ["abac"]), cuts=[1, 2, 3])
def test_stop_strings_cut_where_the_definition_says(
    drawn: tuple[str, list[str]], cuts: list[int]
) -> None:
    text, stops = drawn
    stream = StopStrings(stops)
    pushed = returned = ""
    for piece in split(text, cuts):
        pushed += piece
        returned += stream.push(piece)
        expected, matched = cut_at_stop(pushed, stops)
        assert stream.matched == matched
        if matched is None:
            expected = without_undecided(expected, stops)
        assert returned == expected
    assert returned + stream.finish() == cut_at_stop(text, stops)[0]
    assert stream.finish() == ""


def test_text_behind_a_stop_string_is_dropped() -> None:
    stream = StopStrings(["b"])
    assert stream.push("abc") == "a"
    assert stream.push("cab") == ""
    assert stream.finish() == ""
    assert stream.matched == "b"


@pytest.mark.parametrize("stops", [[""], ["a" * 1025], ["a"] * 65, ["\0"], ["a", "\ud800"]])
def test_stop_strings_that_could_never_match(stops: list[str]) -> None:
    with pytest.raises(NemotronError, match="stop string"):
        StopStrings(stops)


def test_the_error_names_the_stop_string_counted_from_1() -> None:
    with pytest.raises(NemotronError) as refused:
        StopStrings(["a", "b", "", "c"])
    assert refused.value.where == "stop string 3"


def test_the_largest_stop_strings_that_are_allowed() -> None:
    stops = [f"{number:02}" + "a" * 1022 for number in range(64)]
    stream = StopStrings(stops)
    assert stream.push("x" + stops[63][:-1]) == "x"
    assert stream.push("ab") == ""
    assert stream.matched == stops[63]
