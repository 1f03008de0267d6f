"""What a line of the input is, and what is wrong with it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nemotron_core.errors import NemotronError
from nemotron_data.rows import BadRow, Row, Source, parse

MESSAGES = [{"role": "user", "content": "Hello"}]
OPENAI = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": MESSAGES, "max_tokens": 3},
}


def line(content: object) -> bytes:
    return json.dumps(content).encode() + b"\n"


def test_an_openai_line() -> None:
    body = {"messages": MESSAGES, "max_tokens": 3}
    assert parse(4, line(OPENAI)) == Row(4, "a", "/v1/chat/completions", body)


def test_plain_lines_have_ids_of_place_and_content() -> None:
    first, second = parse(1, line({"prompt": "x"})), parse(2, line({"prompt": "x"}))
    other = parse(1, line({"prompt": "y"}))
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert isinstance(other, Row)
    assert first.endpoint == "/v1/completions"
    assert len({first.custom_id, second.custom_id, other.custom_id}) == 3
    assert parse(1, b'{"prompt": "x"}') == first  # also without the newline
    named = parse(1, line({"custom_id": "n", "messages": MESSAGES}))
    assert named == Row(1, "n", "/v1/chat/completions", {"messages": MESSAGES})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\n", "can't decode"),
        (b"{\n", "Expecting"),
        (b"[]\n", "not a JSON object"),
        (b"{}\n", "there is no messages"),
        (b'{"prompt": NaN}\n', "NaN is not JSON"),
        (b'{"prompt": ""}\n', "prompt is empty"),
        (b'{"messages": "x"} {}\n', "Extra data"),
        (line({"prompt": "x", "messages": MESSAGES}), "messages does not belong"),
        (line({"prompt": "x", "stream": True}), "whole answers"),
        (line({**OPENAI, "custom_id": 7}), "custom_id must be a string"),
        (line({**OPENAI, "custom_id": ""}), "custom_id must be a string"),
        (line({**OPENAI, "custom_id": "\ud800"}), "surrogates"),
        (line({**OPENAI, "method": "GET"}), "'GET' is not POST"),
        (line({**OPENAI, "url": "/v1/embeddings"}), "neither"),
        (line({**OPENAI, "url": []}), "neither"),
        (line({**OPENAI, "body": []}), "body is not a JSON object"),
        (line({**OPENAI, "priority": 1}), "unknown key 'priority'"),
        (b"[" * 100_000 + b"\n", "nested too deep"),
    ],
)
def test_bad_lines_say_why(data: bytes, reason: str) -> None:
    row = parse(9, data)
    assert isinstance(row, BadRow)
    assert row.number == 9
    assert reason in row.reason
    assert row.remedy


def test_the_second_of_two_ids_is_bad_and_names_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(line(OPENAI) + b"\n" + line({"prompt": "x"}) + line(OPENAI))
    source = Source(str(path))
    assert source.rows == 3
    for _ in range(2):
        *good, bad = source.read()
        assert [row.number for row in good] == [1, 3]
        assert isinstance(bad, BadRow)
        assert "lines 1 and 4" in bad.reason
    source.close()


def test_gzip_has_the_hash_of_its_lines(tmp_path: Path) -> None:
    plain, packed = tmp_path / "in.jsonl", tmp_path / "in.jsonl.gz"
    plain.write_bytes(line(OPENAI) * 3)
    packed.write_bytes(gzip.compress(line(OPENAI)) + gzip.compress(line(OPENAI) * 2))
    sources = [Source(str(plain)), Source(str(packed))]
    assert sources[0].sha256 == sources[1].sha256
    assert list(sources[0].read()) == list(sources[1].read())
    for source in sources:
        source.close()
    packed.write_bytes(packed.read_bytes()[:-3])
    with pytest.raises(NemotronError, match="cannot read"):
        Source(str(packed))
    with pytest.raises(NemotronError, match="No such file"):
        Source(str(tmp_path / "nothing"))
