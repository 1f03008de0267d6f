"""The lines of the output and of the error file."""

from __future__ import annotations

import datetime
import json

import pytest

from nemotron_core.errors import ErrorKind
from nemotron_data.batch.result_line import NotAccepted, failure_line, result_line
from nemotron_data.rows.row import CHAT, BadRow, Row
from nemotron_data.transport.protocol import Answer, Failure

BODY = {"messages": [{"role": "user", "content": "Hello"}]}
ROW = Row(7, "a", CHAT, BODY)
AGAIN = "run the same command again"


def answer(content: object) -> Answer:
    body = {"id": "b", "choices": [{"message": {"content": content}}]}
    return Answer(200, "r", json.dumps(body, ensure_ascii=False, indent=1).encode())


def test_a_result_has_openai_s_form_and_the_server_s_own_body() -> None:
    row = Row(7, "お茶", CHAT, BODY)
    line = result_line(row, answer("Tee – お茶"))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "id": f"batch_req_{row.key.hex()}",
        "custom_id": "お茶",
        "response": {
            "status_code": 200,
            "request_id": "r",
            "body": json.loads(answer("Tee – お茶").body),
        },
        "error": None,
    }
    assert "お茶".encode() in line


def test_the_columns_that_are_not_sent_come_back() -> None:
    row = Row(7, "a", CHAT, BODY, {"source": "wiki", "half": "\ud800"})
    for line in [result_line(row, answer("x")), failure_line(row, None)]:
        assert json.loads(line)["metadata"] == {"source": "wiki", "half": "\ud800"}
    assert "metadata" not in json.loads(result_line(ROW, answer("x")))


def test_a_table_s_values_become_texts() -> None:
    metadata = {"day": datetime.date(2026, 1, 2), "set": complex(1, 2)}
    line = json.loads(result_line(Row(7, "a", CHAT, BODY, metadata), answer("x")))
    assert line["metadata"] == {"day": "2026-01-02", "set": "(1+2j)"}


def test_half_of_a_surrogate_pair_in_an_answer_stays() -> None:
    body = b'{"choices": [{"message": {"content": "\\ud800"}}]}'
    line = result_line(ROW, Answer(200, "r", body))
    assert json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] == "\ud800"


@pytest.mark.parametrize(
    "body", [b'{"choices": [NaN]}', b'{"choices": 1}', b"\xff", b'{"choices": [], "a": "\xff"}']
)
def test_an_answer_that_is_no_json_of_openai_is_a_failure_of_the_server(body: bytes) -> None:
    with pytest.raises(Failure, match="the answer is not OpenAI's") as raised:
        Answer(200, "r", body)
    assert (raised.value.kind, raised.value.status) == (ErrorKind.FAILED, 200)


def test_an_answer_that_is_not_accepted_is_kept_with_the_reason() -> None:
    line = json.loads(failure_line(ROW, NotAccepted("cut off", answer("x"))))
    assert line["response"]["body"]["choices"][0]["message"]["content"] == "x"
    assert (line["error"]["code"], line["error"]["message"]) == ("not_accepted", "cut off")


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
