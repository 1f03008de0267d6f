"""Errors: their text, their kinds, and the codes of each kind."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_core.errors import ERROR_CODES, ErrorKind, NemotronError

CONTRACT = Path(__file__).parents[2] / "docs" / "contract.md"
TRITON_CODES = {
    "UNKNOWN",
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "UNAVAILABLE",
    "UNSUPPORTED",
    "ALREADY_EXISTS",
    "CANCELLED",
}
"""Names in Triton's `TritonError`."""
EXPECTED = {
    ErrorKind.REFUSED: (400, "invalid_request_error", None, False, 1),
    ErrorKind.OVERLOADED: (429, "overloaded_error", "overloaded", True, 1),
    ErrorKind.SHUTTING_DOWN: (503, "server_error", "unavailable", True, 1),
    ErrorKind.UNREACHABLE: (503, "server_error", "unavailable", True, 1),
    ErrorKind.TIMED_OUT: (504, "server_error", "timeout", False, 1),
    ErrorKind.FAILED: (500, "server_error", "engine_failed", False, 1),
    ErrorKind.INTERRUPTED: (499, "server_error", "cancelled", False, 130),
}
"""HTTP status, OpenAI's type and code, whether `Retry-After` is sent, exit code."""


class Overloaded(NemotronError):
    kind = ErrorKind.OVERLOADED


def test_an_error_is_one_line_with_what_where_and_remedy() -> None:
    error = NemotronError("two\nlines", where="file", remedy="do this")
    assert str(error) == "two lines [file]: do this"
    assert str(NemotronError("what")) == "what"


@given(text=st.text())
def test_an_error_never_moves_the_cursor(text: str) -> None:
    assert str(NemotronError(text, where=text, remedy=text)).isprintable()


def test_every_kind_has_its_codes() -> None:
    assert set(ERROR_CODES) == set(EXPECTED) == set(ErrorKind)
    for kind, expected in EXPECTED.items():
        codes = kind.codes
        assert codes.triton in TRITON_CODES
        assert (
            codes.http,
            codes.openai_type,
            codes.openai_code,
            codes.retry,
            codes.exit_code,
        ) == expected
        assert NemotronError("what", kind=kind).exit_code == codes.exit_code


def test_the_prefixes_on_the_wire_are_those_of_the_contract() -> None:
    listed = re.findall(r"^\| `([a-z ]+: )` \|", CONTRACT.read_text(), re.MULTILINE)
    without_readers = {ErrorKind.INTERRUPTED}
    assert sorted(listed) == sorted(kind.value for kind in set(ErrorKind) - without_readers)


@given(
    before=st.sampled_from(["", "in ensemble 'ensemble', ", "[400] "]),
    kind=st.sampled_from(ErrorKind),
    later=st.sampled_from(ErrorKind),
)
def test_the_kind_of_a_message_is_its_first_prefix(
    before: str, kind: ErrorKind, later: ErrorKind
) -> None:
    assert ErrorKind.of_text(f"{before}{kind.value}what [where]: {later.value}why") is kind


@pytest.mark.parametrize("text", ["", "Failed to process the request", "server overloaded"])
def test_a_message_of_somebody_else_has_no_kind(text: str) -> None:
    assert ErrorKind.of_text(text) is None


@pytest.mark.parametrize(
    "error",
    [
        NemotronError("what"),
        NemotronError("two\nlines", where=Path("/file"), remedy="do this"),
        NemotronError("what", where="x", kind=ErrorKind.INTERRUPTED),
        Overloaded("64 requests run or wait already", remedy="try again later"),
    ],
)
def test_an_error_is_the_same_in_another_process(error: NemotronError) -> None:
    copy = pickle.loads(pickle.dumps(error, pickle.HIGHEST_PROTOCOL))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    for name in ("what", "where", "remedy", "kind", "exit_code"):
        assert getattr(copy, name) == getattr(error, name)
