"""The files of training data, read by the programs that they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from pyarrow import parquet

from nemotron_core.errors import NemotronError
from tests.data.synthesis import recipe, rows, run, write_rows

NOBODY = "http://127.0.0.1:1"
SCORES = {
    "helpfulness": 3.5,
    "correctness": 3.0,
    "coherence": 4.0,
    "complexity": 1.5,
    "verbosity": 2.0,
}
CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello, wörld"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Good bye"},
]
ROW = {"messages": CONVERSATION, "scores": SCORES, "reward": 4.5, "topic": "greetings"}
PROVENANCE = [{"stage": "a", "model": "m", "request": "batch_req_1"}]


def outputs(folder: Path, form: str, *given: Any, name: str = "out.jsonl") -> list[dict[str, Any]]:
    write_rows(folder / "in.jsonl", *given)
    written = {name: {"rows": "a", "format": form}}
    run(folder, recipe(NOBODY, {"a": {"rows": "in.jsonl"}}, written))
    return rows(folder, name) if name.endswith(".jsonl") else []


def test_conversations_for_supervised_training(tmp_path: Path) -> None:
    (row,) = outputs(tmp_path, "messages", ROW | {"provenance": PROVENANCE})
    assert len(row.pop("id")) == 16
    extras = {"reward": 4.5, "scores": SCORES, "provenance": PROVENANCE}
    assert row == {"messages": CONVERSATION, **extras}
    (row,) = outputs(tmp_path, "sharegpt", ROW)
    assert row["conversations"][1:3] == [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello, wörld"},
    ]
    (row,) = outputs(tmp_path, "nemo", ROW)
    assert (row["system"], row["mask"], row["type"]) == ("Be kind.", "User", "VALUE_TO_TEXT")
    assert [turn["from"] for turn in row["conversations"]] == ["User", "Assistant"] * 2
    assert row["conversations"][-1]["value"] == "Good bye"


@pytest.mark.parametrize("form", ["messages", "sharegpt", "nemo"])
def test_a_turn_of_somebody_else_is_refused(form: str, tmp_path: Path) -> None:
    tool = {"role": "tool", "content": "42"}
    with pytest.raises(NemotronError, match="no messages of system, user, assistant that end"):
        outputs(tmp_path, form, {"messages": [CONVERSATION[1], tool, CONVERSATION[2]]})


@pytest.mark.parametrize("value", ["\ud800", 2**70])
def test_what_parquet_cannot_hold(value: object, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match="cannot write: "):
        outputs(tmp_path, "columns", {"value": value}, name="out.parquet")
    assert not list((tmp_path / "out").glob("*out.parquet*"))


def test_columns_that_are_null_are_left_out(tmp_path: Path) -> None:
    (row,) = outputs(tmp_path, "messages", ROW | {"provenance": None, "verdicts": None})
    assert not {"provenance", "verdicts"} & row.keys()


def test_attributes_as_helpsteer2_has_them(tmp_path: Path) -> None:
    short = {"messages": CONVERSATION[1:3], "scores": SCORES}
    first, second = outputs(tmp_path, "helpsteer2", short, ROW)
    assert (first["prompt"], first["response"]) == ("Hi", "Hello, wörld")
    assert {name: first[name] for name in SCORES} == SCORES
    turns = "Be kind.\n\nHi\n<extra_id_1>Assistant\nHello, wörld\n<extra_id_1>User\nBye"
    assert second["prompt"] == turns
    with pytest.raises(NemotronError, match="no scores of a reward model"):
        outputs(tmp_path, "helpsteer2", {"messages": CONVERSATION})


PAIR = {
    "prompt": CONVERSATION[:2],
    "chosen": [{"role": "assistant", "content": "Hello"}],
    "rejected": [{"role": "assistant", "content": "What?"}],
    "chosen_reward": 3.0,
    "rejected_reward": 1.0,
}


def test_preferences(tmp_path: Path) -> None:
    (row,) = outputs(tmp_path, "trl", PAIR | {"topic": "greetings"})
    row.pop("id")
    assert row == PAIR
    (row,) = outputs(tmp_path, "nemo-aligner", PAIR)
    row.pop("id")
    assert row == {
        "prompt": "<extra_id_0>System\nBe kind.\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n",
        "chosen_response": "Hello\n<extra_id_1>",
        "rejected_response": "What?\n<extra_id_1>",
        "chosen_reward": 3.0,
        "rejected_reward": 1.0,
    }
    with pytest.raises(NemotronError, match="no chosen and no rejected"):
        outputs(tmp_path, "trl", {"prompt": []})


@pytest.mark.parametrize("name", ["sft.jsonl", "sft.parquet"])
def test_hugging_face_loads_the_folder_by_its_card(name: str, tmp_path: Path) -> None:
    given = [ROW, ROW | {"reward": 2, "model": "m"}, {"messages": CONVERSATION[1:3], "reward": 1}]
    outputs(tmp_path, "messages", *given, name=name)
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), "sft", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["reward"] == [4.5, 2.0, 1.0]
    assert loaded["messages"][0] == CONVERSATION
    assert loaded["scores"][0] == SCORES
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| `{name}` | messages | 3 |" in card
    assert "| a | 3 | 3 | – |" in card
    assert "License" in card


def test_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n")
    outputs(tmp_path, "messages", name="sft.parquet")
    assert parquet.read_table(tmp_path / "out" / "sft.parquet").num_rows == 0


def test_the_manifest_names_the_run_that_made_an_input(tmp_path: Path) -> None:
    outputs(tmp_path, "messages", ROW)
    first = (tmp_path / "out").rename(tmp_path / "first")
    steps = {"a": {"rows": str(first / "out.jsonl")}, "b": {"rows": "in.jsonl"}}
    manifest = run(tmp_path, recipe(NOBODY, steps))
    chained, plain = manifest.inputs
    assert chained.made_by is not None
    assert len(chained.made_by) == 64
    assert plain.made_by is None
    assert (tmp_path / "out" / "manifest.json").read_text().count(chained.made_by) == 1
