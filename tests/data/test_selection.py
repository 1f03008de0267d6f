"""The steps that score, keep and pair rows without a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.errors import NemotronError
from tests.data.synthesis import recipe, rows, run, write_rows

NOBODY = "http://127.0.0.1:1"


def answer(question: str, text: str, **columns: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return {"messages": messages, "answer": text, **columns}


def step(folder: Path, content: dict[str, Any], *given: Any) -> tuple[list[Any], dict[str, int]]:
    """Return the answers that are left by a step, and what it left out."""
    write_rows(folder / "in.jsonl", *given)
    manifest = run(folder, recipe(NOBODY, {"a": {"rows": "in.jsonl"} | content}))
    return [row.get("answer") for row in rows(folder)], manifest.steps["a"].left_out


def test_a_filter_keeps_what_is_true_and_the_best_of_each_prompt(tmp_path: Path) -> None:
    given = [answer("q", "a", reward=1), answer("r", "b", reward=9), answer("q", "c", reward=3)]
    given += [answer("q", "d", reward=2), answer("r", "long", reward=20)]
    content = {"filter": {"where": "reward > 1 and answer|length < 4", "best": 1}}
    left_out = {"condition": 2, "not the best": 1}
    assert step(tmp_path, content, *given) == (["b", "c"], left_out)
    content = {"filter": {"best": 1, "by": "-reward", "per": "all"}}
    assert step(tmp_path, content, *given) == (["a"], {"not the best": 4})
    with pytest.raises(NemotronError, match=r"'score' is undefined .*filter\.where"):
        step(tmp_path, {"filter": {"where": "score > 1"}}, *given)
    with pytest.raises(NemotronError, match=r"a is no finite number .*filter\.by"):
        step(tmp_path, {"filter": {"best": 1, "by": "answer"}}, *given)


SENTENCE = "the quick brown fox jumps over the lazy dog and runs far away into the dark wood"


def test_equal_and_similar_texts(tmp_path: Path) -> None:
    texts = ["2 + 2", "2 - 2", " 2 +  2 ", SENTENCE, SENTENCE.replace("dark", "deep"), "fox"]
    given = [answer("q", text) for text in texts]
    content = {"dedup": {"text": "{{ answer }}"}}
    assert step(tmp_path, content, *given) == ([*texts[:2], *texts[3:]], {"duplicate": 1})
    content = {"dedup": {"text": "{{ answer }}", "similarity": 0.6}}
    left_out = {"duplicate": 1, "near duplicate": 1}
    assert step(tmp_path, content, *given) == ([*texts[:2], texts[3], "fox"], left_out)


def test_rows_that_share_words_with_a_benchmark(tmp_path: Path) -> None:
    write_rows(tmp_path / "bench.jsonl", {"question": SENTENCE, "choices": ["Yes", "no fox"]})
    texts = [f"Why does {SENTENCE.upper()}?", "the quick brown fox", "No fox!", "yes indeed", "yes"]
    settings = {"text": "{{ answer }}", "against": ["bench.jsonl"], "words": 5}
    left, left_out = step(
        tmp_path, {"decontaminate": settings}, *(answer("q", text) for text in texts)
    )
    assert left == ["the quick brown fox", "yes indeed"]
    assert left_out == {"in a benchmark": 3}


@pytest.mark.parametrize(
    ("truth", "reference", "good", "bad"),
    [
        ("exact", "Paris", " paris\n", "In Paris"),
        ("number", "1007", "So 1,007.0 apples.", "1007 or 1008"),
        ("number", "3/4", "It is 0.75", "It is 3"),
        ("number", "-2", "x = -2", "x = 2"),
        ("number", "none", "no number", "neither"),
        ("regex", r"\bteas?\b", "two teas", "a teapot"),
    ],
)
def test_known_answers(truth: str, reference: str, good: str, bad: str, tmp_path: Path) -> None:
    given = [answer("q", good), answer("q", bad)]
    score = {"truth": truth, "reference": reference}
    step(tmp_path, {"score": score}, *given)
    expected = [1.0, 0.0] if reference != "none" else [0.0, 0.0]
    assert [row["reward"] for row in rows(tmp_path)] == expected


def test_odd_values_end_in_an_error_that_names_the_step(tmp_path: Path) -> None:
    given = answer("q", "a = 1/" + "3" * 5000)
    step(tmp_path, {"score": {"truth": "number", "reference": "1"}}, given)
    assert [row["reward"] for row in rows(tmp_path)] == [0.0]
    with pytest.raises(NemotronError, match=r"no regular expression: .*steps\.a\.score"):
        step(tmp_path, {"score": {"truth": "regex", "reference": "[a"}}, given)
    given["reward"] = 1e308
    for number in ("reward * 10", "reward * 10 - reward * 10", "10 ** 400"):
        with pytest.raises(NemotronError, match=r"is no finite number .*filter\.by"):
            step(tmp_path, {"filter": {"best": 1, "by": number}}, given)


def test_constraints_are_counted(tmp_path: Path) -> None:
    constraints = [{"kind": "no_commas"}, {"kind": "at_most_words", "value": 1}]
    given = [answer("q", text, rules=constraints) for text in ("one", "a, b", "a b")]
    step(tmp_path, {"score": {"constraints": "rules"}}, *given)
    assert [row["reward"] for row in rows(tmp_path)] == [1.0, 0.0, 0.5]
    assert rows(tmp_path)[2]["fulfilled"] == [True, False]
    with pytest.raises(NemotronError, match="no constraint: None"):
        step(tmp_path, {"score": {"constraints": "other"}}, *given)


@pytest.mark.slow
def test_programs_run_once_in_the_sandbox_that_the_user_names(tmp_path: Path) -> None:
    """Here the sandbox is none: it counts its runs and runs three programs of this test."""
    runs = tmp_path / "runs"
    script = (
        "import sys, time; open(sys.argv[1], 'a').write('.');"
        "text = sys.stdin.read(); 'loop' in text and time.sleep(60); exec(text)"
    )
    programs = ["assert 1 + 1 == 2", "assert 1 + 1 == 3", "loop"]
    score = {
        "program": "{{ answer }}",
        "sandbox": [sys.executable, "-c", script, str(runs)],
        "seconds": 3.0,
    }
    given = [answer("q", text) for text in programs]
    for _ in range(2):
        step(tmp_path, {"score": score}, *given)
        assert [row["reward"] for row in rows(tmp_path)] == [1.0, 0.0, 0.0]
    assert runs.read_text() == "..."
    ledger = tmp_path / "out" / "asked" / "a.programs.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-3])
    step(tmp_path, {"score": score}, *given)
    assert runs.read_text() == "...."
    with pytest.raises(NemotronError, match=r"sandbox does not start.*a\.score\.sandbox"):
        step(tmp_path, {"score": score | {"sandbox": ["/no/such/command"]}}, *given)


def test_pairs_of_the_best_and_the_worst(tmp_path: Path) -> None:
    given = [
        answer("q", "middle", reward=1, topic="t", model="x"),
        answer("r", "low", reward=0),
        answer("q", "worst", reward=0, topic="t", model="y"),
        answer("s", "alone", reward=5),
        answer("q", "best", reward=2.5, topic="t", model="z"),
        answer("r", "lower", reward=-1),
        answer("u", "near", reward=3),
        answer("u", "nearer", reward=3.2),
    ]
    _answers, left_out = step(tmp_path, {"pairs": {"margin": 0.5, "least": 1}}, *given)
    assert left_out == {"only one answer": 1, "margin": 1, "not good enough": 1}
    (pair,) = rows(tmp_path)
    pair.pop("id")
    assert pair == {
        "topic": "t",
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "best"}],
        "rejected": [{"role": "assistant", "content": "worst"}],
        "chosen_model": "z",
        "rejected_model": "y",
        "chosen_reward": 2.5,
        "rejected_reward": 0.0,
        "provenance": [],
    }
    with pytest.raises(
        NemotronError,
        match="the row has no messages of system, user, assistant that end with an answer",
    ):
        step(tmp_path, {"pairs": {}}, {"text": "x", "reward": 1})
