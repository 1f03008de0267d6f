"""What a record of the input is, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemotron_data.rows.parser import RowParser
from nemotron_data.rows.row import CHAT, COMPLETION, BadRow, Row, repeated_key

MESSAGES = [{"role": "user", "content": "Hello"}]
OPENAI = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": MESSAGES, "max_tokens": 3},
}
KEY_OF_OPENAI = "803aae52f0c669cda37d937e65baf0c4"


def line(content: object) -> bytes:
    return json.dumps(content).encode() + b"\n"


def parse(record: Any, number: int = 1, **options: Any) -> Row:
    row = RowParser(**options).parse(number, record)
    assert isinstance(row, Row), row
    return row


def bad(record: Any, **options: Any) -> BadRow:
    row = RowParser(**options).parse(9, record)
    assert isinstance(row, BadRow), row
    assert row.number == 9
    assert row.remedy
    return row


def test_an_openai_line() -> None:
    row = parse(line(OPENAI), number=4)
    assert (row.number, row.custom_id, row.endpoint) == (4, "a", CHAT)
    assert row.body == {"messages": MESSAGES, "max_tokens": 3}
    assert row.metadata is None


def test_a_plain_line() -> None:
    row = parse(line({"custom_id": "n", "messages": MESSAGES, "temperature": 1}))
    assert (row.custom_id, row.endpoint) == ("n", CHAT)
    assert row.body == {"messages": MESSAGES, "temperature": 1}
    assert parse(line({"prompt": "x"})).endpoint == COMPLETION


def test_without_a_custom_id_the_content_is_the_name() -> None:
    first = parse(line({"prompt": "x", "max_tokens": 5}), number=1)
    same = parse(b'{"max_tokens": 5,   "prompt": "x"}', number=7)
    other = parse(line({"prompt": "y", "max_tokens": 5}))
    assert first.custom_id == same.custom_id == f"row-{first.key.hex()}"
    assert not first.has_own_id
    assert other.custom_id != first.custom_id
    same.rename(2)
    assert same.custom_id == first.custom_id + "-2"
    assert same.key == repeated_key(first.key, 2) != first.key


def test_the_key_is_what_is_asked() -> None:
    """As in outputs that were written before: it must never change."""
    assert parse(line(OPENAI)).key.hex() == KEY_OF_OPENAI
    other = OPENAI | {"custom_id": "b"}
    longer = OPENAI | {"body": {"messages": MESSAGES, "max_tokens": 4}}
    keys = {parse(line(content)).key for content in (OPENAI, other, longer)}
    assert len(keys) == 3
    with_columns = {"source": "wiki", **dict(reversed(OPENAI.items()))}
    assert parse(line(with_columns)).key in keys


@pytest.mark.parametrize(
    ("custom_id", "name"), [(7, "7"), (0, "0"), (-3, "-3"), (10**30, str(10**30))]
)
def test_a_number_is_an_id(custom_id: int, name: str) -> None:
    assert parse(line({"custom_id": custom_id, "prompt": "x"})).custom_id == name


def test_unknown_columns_are_metadata_and_are_not_sent() -> None:
    columns = {"source": "wiki", "difficulty": 3, "documents": ["a"], "request_id": "7"}
    for content in ({**OPENAI, **columns}, {"custom_id": "a", "messages": MESSAGES, **columns}):
        row = parse(line(content))
        assert row.metadata == columns
        assert not row.body.keys() & columns.keys()
    parser = RowParser()
    parser.parse(1, line({"prompt": "x", "b": 1, "a": 2}))
    parser.parse(2, line({"prompt": "x", "a": 3, "c": 4}))
    assert list(parser.metadata_columns) == ["b", "a", "c"]


def test_a_text_is_the_message_of_a_user() -> None:
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    for record in (line("Why is the sky blue?"), "Why is the sky blue?"):
        row = parse(record)
        assert (row.endpoint, row.body) == (CHAT, {"messages": messages})
        assert row.metadata is None


def test_a_template_over_columns() -> None:
    content = {"id": "x", "question": "tea {{ 1 }}", "user": "Ada", "temperature": "hot"}
    options = {"prompt": "{{ user }}: {{ question }}", "system": "Be {{ temperature }}."}
    row = parse(line(content), id_column="id", **options)
    assert row.custom_id == "x"
    assert row.body == {
        "messages": [
            {"role": "system", "content": "Be hot."},
            {"role": "user", "content": "Ada: tea {{ 1 }}"},
        ]
    }
    assert row.metadata == {"question": "tea {{ 1 }}", "user": "Ada", "temperature": "hot"}
    assert bad(line(content), prompt="{{ other }}").reason.endswith("'other' is undefined")
    assert parse("tea", prompt="On {{ text }}").body["messages"][0]["content"] == "On tea"
    with pytest.raises(ValueError, match="not a template"):
        RowParser(prompt="{{ x")


def test_a_column_that_holds_the_prompt() -> None:
    row = parse(line({"question": "hi", "answer": "x"}), prompt_column="question")
    assert row.body == {"messages": [{"role": "user", "content": "hi"}]}
    assert row.metadata == {"question": "hi", "answer": "x"}
    assert "no column 'other'" in bad(line({"question": "hi"}), prompt_column="other").reason
    assert "the prompt is empty" in bad(line({"question": " "}), prompt_column="question").reason


def test_sharegpt_conversations_end_before_the_answer_to_ask_for() -> None:
    turns = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "hi"},
        {"from": "gpt", "value": "hello"},
    ]
    row = parse(line({"id": "s1", "conversations": turns}))
    assert row.custom_id == "s1"
    assert [message["role"] for message in row.body["messages"]] == ["system", "user"]
    assert row.metadata == {"reference": "hello"}
    row = parse(line({"conversations": [*turns, {"from": "human", "value": "and?"}]}))
    assert [message["content"] for message in row.body["messages"]][2:] == ["hello", "and?"]
    for wrong in (None, [], [3], [{"from": "human"}], [{"from": "alien", "value": "x"}]):
        assert bad(line({"conversations": wrong}))


def test_a_table_s_row_has_empty_cells_and_texts_instead_of_numbers() -> None:
    row = parse({"prompt": "12", "max_tokens": "5", "stop": "7", "seed": "", "source": None})
    assert row.body == {"prompt": "12", "max_tokens": 5, "stop": "7"}
    row = parse({"messages": [{"role": "user", "content": "hi", "name": None}]})
    assert row.body == {"messages": [{"role": "user", "content": "hi"}]}
    assert parse({"messages": json.dumps(MESSAGES)}).body == {"messages": MESSAGES}


def test_half_of_a_surrogate_pair_is_sent_as_it_is() -> None:
    row = parse(b'{"custom_id": "a", "prompt": "lone \\ud800"}')
    assert row.body == {"prompt": "lone \ud800"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"prompt": "na\xe9"}\n', "not UTF-8: byte 0xe9 at column 15"),
        (b"{\n", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"prompt": "nul \0"}', "not JSON: Invalid control character at column 17"),
        (b"[]\n", "neither an object nor a text"),
        (b"7\n", "neither an object nor a text"),
        (b"{}\n", "there is no messages"),
        (line({"question": "x", "answer": "y"}), "there is no messages, only answer, question"),
        (b'{"prompt": NaN}\n', "NaN is not JSON"),
        (b'{"prompt": "x", "top_p": 1e999}\n', "not JSON compliant"),
        (b'{"prompt": ""}\n', "prompt is empty"),
        (line({"messages": "x"}), "messages is empty or of the wrong type"),
        (b'{"messages": "x"} {}\n', "Extra data"),
        (line({"prompt": "x", "messages": MESSAGES}), "messages does not belong"),
        (line({"prompt": "x", "stream": True}), "whole answers"),
        (line({**OPENAI, "custom_id": 7.5}), "custom_id must be a string"),
        (line({**OPENAI, "custom_id": True}), "custom_id must be a string"),
        (line({**OPENAI, "custom_id": ""}), "custom_id must be a string"),
        (line({**OPENAI, "custom_id": "x" * 513}), "custom_id must be a string"),
        (line({**OPENAI, "custom_id": "\ud800"}), r"half of a surrogate pair, \ud800"),
        (line({**OPENAI, "method": "GET"}), "'GET' is not POST"),
        (line({**OPENAI, "url": "/v1/embeddings"}), "neither"),
        (line({**OPENAI, "url": []}), "neither"),
        (line({**OPENAI, "body": []}), "body is not a JSON object"),
        (b"[" * 100_000 + b"\n", "nested too deep"),
    ],
)
def test_bad_lines_say_why(data: bytes, reason: str) -> None:
    assert reason in bad(data).reason
