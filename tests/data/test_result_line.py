"""The lines of the output and of the error file."""

from __future__ import annotations

import json

import pytest

from nemotron_core.errors import ErrorKind
from nemotron_data.batch.result_line import failure_line, result_line
from nemotron_data.rows import CHAT, BadRow, Row
from nemotron_data.transport.protocol import Answer, Failure

ROW = Row(7, "a", CHAT, {})
AGAIN = "run the same command again"


def test_a_result_has_openai_s_form() -> None:
    line = result_line("お茶", Answer(200, "r", {"choices": ["\ud800"]}))
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "id": json.loads(failure_line(Row(1, "お茶", CHAT, {}), None))["id"],
        "custom_id": "お茶",
        "response": {"status_code": 200, "request_id": "r", "body": {"choices": ["\ud800"]}},
        "error": None,
    }
    assert "お茶".encode() in result_line("お茶", Answer(200, "r", {}))


def test_an_answer_that_is_no_json_is_a_failure_of_the_server() -> None:
    with pytest.raises(Failure, match="the answer is no JSON") as raised:
        result_line("a", Answer(200, "r", {"choices": [float("nan")]}))
    assert (raised.value.kind, raised.value.status) == (ErrorKind.FAILED, 500)


@pytest.mark.parametrize(
    ("kind", "status", "code", "remedy"),
    [
        (ErrorKind.REFUSED, 400, "refused", "correct the row"),
        (ErrorKind.REFUSED, None, "refused", "correct the row"),
        (ErrorKind.FAILED, 500, "failed", AGAIN),
        (ErrorKind.TIMED_OUT, 504, "failed", AGAIN),
        (ErrorKind.UNREACHABLE, None, "lost", AGAIN),
        (ErrorKind.UNREACHABLE, 503, "lost", AGAIN),
    ],
)
def test_a_failure_says_what_to_do(
    kind: ErrorKind, status: int | None, code: str, remedy: str
) -> None:
    line = json.loads(failure_line(ROW, Failure(kind, "two\nlines", status=status)))
    error = {"line": 7, "code": code, "message": "two lines", "remedy": remedy}
    error |= {} if status is None else {"status_code": status}
    assert (line["custom_id"], line["response"], line["error"]) == ("a", None, error)


def test_a_bad_row_has_an_id_even_without_a_custom_id() -> None:
    lines = [
        json.loads(failure_line(BadRow(number, None, "bad", "mend it"), None)) for number in (1, 2)
    ]
    assert lines[0]["id"] != lines[1]["id"]
    error = {"line": 2, "code": "bad_row", "message": "bad", "remedy": "mend it"}
    assert (lines[1]["custom_id"], lines[1]["error"]) == (None, error)
