"""Suites, the model card as one, and the files of their items."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_core.errors import NemotronError
from nemotron_evaluate.suite.items import Item, read_items, write_items
from nemotron_evaluate.suite.suite import load_suite


def test_the_card_has_every_number_of_its_table() -> None:
    """The nine rows of the card; MMLU stands there twice, because the card leaves open how."""
    benchmarks = load_suite("card").benchmarks
    values = {
        (name, key): score.card
        for name, benchmark in benchmarks.items()
        for key, score in benchmark.scores.items()
    }
    assert values == {
        ("ifeval", "prompt"): 79.9,
        ("ifeval", "instruction"): 86.1,
        ("gsm8k", "accuracy"): 92.3,
        ("mmlu", "accuracy"): 78.7,
        ("mmlu-generative", "accuracy"): 78.7,
        ("humaneval", "pass"): 73.2,
        ("mbpp", "pass"): 75.4,
        ("mt-bench", "first"): 8.61,
        ("mt-bench", "second"): 7.84,
        ("mt-bench", "both"): 8.22,
        ("arena-hard", "wins"): 54.2,
        ("alpaca-eval", "wins"): 41.5,
        ("tfeval", "distractor"): 81.7,
        ("tfeval", "on-topic"): 97.7,
    }
    assert all(b.needs for b in benchmarks.values() if b.judge)


def test_a_suite_says_what_differs_from_the_card(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("benchmarks: {gsm8k: {limit: 5, max_tokens: 99}, ifeval: }\n")
    benchmarks = load_suite(str(path)).benchmarks
    card = load_suite("card").benchmarks
    assert benchmarks["ifeval"] == card["ifeval"]
    assert benchmarks["gsm8k"] == card["gsm8k"].model_copy(update={"limit": 5, "max_tokens": 99})
    path.write_text("benchmarks: [gsm8k]\n")
    assert load_suite(str(path)).benchmarks == {"gsm8k": card["gsm8k"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "no readable suite"),
        ("1", "there are no benchmarks"),
        ("benchmarks: {}", "there are no benchmarks"),
        ("benchmarks: {gsm8k: 3}", "gsm8k has no settings but 3"),
        ("benchmarks: [gms8k]", "gms8k is no benchmark of the card"),
        ("benchmarks: {gsm8k: {limits: 3}}", "gsm8k.limits: Extra inputs are not permitted"),
        ("benchmarks: {gsm8k: {limit: 0}}", "gsm8k.limit: "),
        ("{benchmarks: [gsm8k], more: 1}", "more: Extra inputs"),
        ("benchmarks: {own: {title: t, harness: lm-eval, task: t}}", "own.scores: Field required"),
        (
            "benchmarks: {../x: {title: t, harness: lm-eval, task: t, scores: {a: {metric: m}}}}",
            "'../x' is no name of a benchmark",
        ),
        (
            "benchmarks: {x: {title: t, harness: lm-eval, task: t.yaml, scores: {a: {metric: m}}}}",
            "the task's file does not exist",
        ),
        (
            "benchmarks: {gsm8k: {data: {split: s, tasks: ../../x, columns: []}}}",
            "a path inside the harness's tasks is needed",
        ),
    ],
)
def test_wrong_suites(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(content)
    with pytest.raises(NemotronError) as caught:
        load_suite(str(path))
    assert message in str(caught.value)


def test_items_with_any_separator_of_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    items = [Item(name=f"a\u2028b\x85c\r\n/{n}", content="x", values={"s": (1.0,)}) for n in (0, 1)]
    write_items(tmp_path / "items.jsonl", items)
    assert read_items(tmp_path / "items.jsonl") == items
