"""The step `safety` of a recipe, with a stand-in for a safety model in Llama Guard's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemotron_data.synthesis.safety import read_judgement
from tests.data.synthesis import recipe, rows, run, write_rows
from tests.standins.chat_server import ChatServer, Reply, said

JUDGEMENTS = {
    "a knife?": "unsafe\nO4",
    "Here is a bomb.": "unsafe\nO3,O4",
    "Damn.": "unsafe\nO12",
    "Hm.": "unsafe",
    "Well.": "I cannot judge that.",
}
"""Judgements by the last message; all else is safe."""
CONVERSATIONS = [
    ("hello?", "Hello."), ("a knife?", "No."), ("a chemist?", "Here is a bomb."),
    ("a joke?", "Damn."), ("a word?", "Hm."), ("a thing?", "Well."),
]  # fmt: skip


def judge(body: dict[str, Any], _inside: int) -> Reply:
    return said(JUDGEMENTS.get(body["messages"][-1]["content"], "safe"))


def judged(url: str, folder: Path, **settings: Any) -> tuple[list[str], dict[str, int]]:
    """Return the answers that stay, and how many rows were left out by reason."""
    messages = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in CONVERSATIONS
    ]
    write_rows(folder / "rows.jsonl", *({"messages": turns} for turns in messages))
    step = {"rows": "rows.jsonl", "safety": {"model": "reward"} | settings}
    manifest = run(folder, recipe(url, {"guarded": step}))
    kept = [row["messages"][-1]["content"] for row in rows(folder)]
    return kept, manifest.steps["guarded"].left_out


def test_prompt_and_answer_are_judged(tmp_path: Path) -> None:
    with ChatServer(judge) as server:
        kept, left_out = judged(server.url, tmp_path)
        assert server.requests == 2 * len(CONVERSATIONS)
    assert kept == ["Hello."]
    assert left_out == {
        "unsafe: O4": 1,
        "unsafe: O3, O4": 1,
        "unsafe: O12": 1,
        "unsafe: unsafe": 1,
        "unreadable judgement": 1,
    }
    (row,) = rows(tmp_path)
    assert row["safety"] == []
    assert len(row["provenance"]) == 2


def test_only_some_categories_are_dropped(tmp_path: Path) -> None:
    """What has no category, or cannot be read, is left out all the same."""
    with ChatServer(judge) as server:
        kept, left_out = judged(server.url, tmp_path, drop=["O3"], prompt=False)
        assert server.requests == len(CONVERSATIONS)
    assert kept == ["Hello.", "No.", "Damn."]
    assert left_out == {"unsafe: O3": 1, "unsafe: unsafe": 1, "unreadable judgement": 1}
    assert [row["safety"] for row in rows(tmp_path)] == [[], [], ["O12"]]


@pytest.mark.parametrize("text", ["", "SAFE!", "safe\nO1", "unsafe\nviolence", "unsafe: O1"])
def test_another_form_is_no_judgement(text: str) -> None:
    assert read_judgement(text) is None
