"""Which answers a run accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.errors import NemotronError
from nemotron_data.batch.accept import Acceptance
from nemotron_data.transport.protocol import Answer


def chat(content: Any, finish_reason: str = "stop", **message: Any) -> Answer:
    choice = {"message": {"content": content, **message}, "finish_reason": finish_reason}
    return Answer(200, "x", json.dumps({"choices": [choice]}).encode())


def completion(*texts: str, finish_reason: str = "length") -> Answer:
    choices = [{"text": text, "finish_reason": finish_reason} for text in texts]
    return Answer(200, "x", json.dumps({"choices": choices}).encode())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (chat("tea"), None),
        (chat(""), "empty"),
        (chat(" \n"), "empty"),
        (chat(None), "empty"),
        (chat(None, tool_calls=[{"id": "x"}]), None),
        (chat([{"type": "text", "text": "tea"}]), None),
        (chat("tea", "length"), "cut off"),
        (completion("tea"), None),
        (completion("tea", ""), "empty"),
        (completion(), "no choice"),
    ],
)
def test_without_rules_an_answer_is_there_and_whole(answer: Answer, reason: str | None) -> None:
    assert Acceptance().reason_against(answer) == reason
    assert Acceptance(["any"]).reason_against(answer) is None


@pytest.mark.parametrize(
    ("rules", "answer", "reason"),
    [
        (["finish_reason=stop,length"], chat("tea", "length"), None),
        (["finish_reason=stop"], completion("tea"), "finish_reason length"),
        (["finish_reason=length"], chat("", "length"), "empty"),
        (["min_length=4"], chat("tea"), "too short"),
        (["min_length=3"], chat("tea"), None),
        (["regex=e.$"], chat("tea"), None),
        (["regex=^e"], chat("tea"), "no match of the pattern"),
        (["json"], chat("tea"), "not JSON"),
        (["json"], chat("[1]"), None),
        (["json"], chat("[1", "length"), "cut off"),
        (["json", "any"], chat("[1]", "length"), None),
        (["python=operator:not_"], chat("tea"), "operator:not_ says no"),
        (["json", "min_length=9"], chat("[1]"), "too short"),
        (["min_length=2"], completion("tea", "t"), "too short"),
    ],
)
def test_rules(rules: list[str], answer: Answer, reason: str | None) -> None:
    assert Acceptance(rules).reason_against(answer) == reason


def test_a_json_schema(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": ["name"]}))
    acceptance = Acceptance([f"schema={schema}"])
    assert acceptance.reason_against(chat('{"name": 1}')) is None
    assert acceptance.reason_against(chat('{"other": 1}')) == "against the schema"
    assert acceptance.reason_against(chat("{")) == "not JSON"
    schema.write_text('{"type": "banana"}')
    with pytest.raises(NemotronError, match="not a JSON schema"):
        Acceptance([f"schema={schema}"])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("beauty=1", "not a rule"),
        ("min_length", "not a rule"),
        ("json=1", "not a rule"),
        ("min_length=long", "invalid literal"),
        ("regex=(", "missing"),
        ("schema=/none", "No such file"),
        ("python=no_such_module:f", "No module"),
        ("python=json:no_such_function", "no attribute"),
        ("python=no-such-entry-point", "no entry point"),
    ],
)
def test_wrong_rules(rule: str, message: str) -> None:
    with pytest.raises(NemotronError, match=message):
        Acceptance([rule])


def test_a_function_that_raises_is_an_error_of_its_own() -> None:
    acceptance = Acceptance(["python=json:loads"])
    message = r"the function raises JSONDecodeError: Expecting value.*python=json:loads"
    with pytest.raises(NemotronError, match=message):
        acceptance.reason_against(chat("tea"))
