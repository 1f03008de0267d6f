"""The kinds of steps that ask a model, with a stand-in that shows what it was asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nemotron_core.errors import NemotronError
from nemotron_data.synthesis.constraints import CONSTRAINTS, fulfilled, instruction
from nemotron_data.synthesis.steps.pairing import verdict
from tests.data.runs import Asked
from tests.data.synthesis import recipe, reply, rows, run, topics, write_rows
from tests.standins.chat_server import ChatServer, Reply, said
from tests.standins.reward_server import scores_of

USER, ASSISTANT = "user", "assistant"


@pytest.fixture
def asked() -> Asked:
    return Asked(reply)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_rows_are_crossed_zipped_and_chained(standin: ChatServer, tmp_path: Path) -> None:
    topics(tmp_path, "tea", "rice")
    (tmp_path / "styles.csv").write_text("style,tone\nshort,kind\nlong,dry\n")
    steps = {
        "crossed": {"rows": {"cross": ["topics.jsonl", "styles.csv"]}},
        "zipped": {"rows": {"zip": ["topics.jsonl", "styles.csv"]}},
        "all": {"rows": ["crossed", "zipped"], "limit": 5},
    }
    run(tmp_path, recipe(standin.url, steps))
    found = [(row["topic"], row["style"]) for row in rows(tmp_path)]
    crossed = [("tea", "short"), ("tea", "long"), ("rice", "short"), ("rice", "long")]
    assert found == [*crossed, ("tea", "short")]
    topics(tmp_path, "tea")
    with pytest.raises(NemotronError, match="one of the sources ends before row 2"):
        run(tmp_path, recipe(standin.url, steps))
    steps = {"a": {"rows": {"cross": ["topics.jsonl", "other.jsonl"]}}}
    write_rows(tmp_path / "other.jsonl", {"topic": "milk"})
    with pytest.raises(NemotronError, match="two sources have a column 'topic'"):
        run(tmp_path, recipe(standin.url, steps))


def test_rows_of_other_forms(standin: ChatServer, tmp_path: Path) -> None:
    shared = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    write_rows(tmp_path / "in.jsonl", "a text", shared)
    run(tmp_path, recipe(standin.url, {"a": {"rows": "in.jsonl"}}))
    first, second = rows(tmp_path, "steps/a.jsonl")
    assert first == {"text": "a text"}
    assert second == {"messages": [turn(USER, "Hi"), turn(ASSISTANT, "Ho")]}
    write_rows(tmp_path / "in.jsonl", "a text", 7)
    with pytest.raises(NemotronError, match=r"neither an object nor a text.*in\.jsonl:2"):
        run(tmp_path, recipe(standin.url, {"a": {"rows": "in.jsonl"}}))


def test_a_list_with_too_few_items_is_asked_again(tmp_path: Path) -> None:
    answers = iter(["Sorry, no.", "1. one", "1. one\n2. two\n3. three"])
    steps = {
        "items": {
            "rows": "topics.jsonl",
            "prompt": "{{ topic }}",
            "list": {"as": "item", "count": 2},
        }
    }
    topics(tmp_path, "tea")
    with ChatServer(lambda _body, _inside: said(next(answers))) as server:
        run(tmp_path, recipe(server.url, steps))
        assert server.requests == 3
    assert [row["item"] for row in rows(tmp_path)] == ["one", "two"]
    (request,) = {row["provenance"][0]["request"] for row in rows(tmp_path)}
    (answer,) = rows(tmp_path, "asked/items.jsonl")
    assert answer["id"] == request


def test_a_column_leaves_the_conversation_as_it_is(standin: ChatServer, tmp_path: Path) -> None:
    topics(tmp_path, "tea")
    steps = {
        "answers": {"rows": "topics.jsonl", "system": "Be kind.", "prompt": "{{ topic }}"},
        "labels": {"rows": "answers", "prompt": "Label {{ answer }}", "as": "label"},
        "again": {"rows": "labels", "messages": "row"},
    }
    run(tmp_path, recipe(standin.url, steps))
    (labelled,) = rows(tmp_path, "steps/labels.jsonl")
    assert labelled["label"].startswith("Label tea / ")
    assert [part["role"] for part in labelled["messages"]] == ["system", USER, ASSISTANT]
    assert labelled["messages"][-1]["content"] == labelled["answer"]
    (again,) = rows(tmp_path)
    assert again["messages"][:-1] == labelled["messages"][:-1]
    assert [entry["stage"] for entry in again["provenance"]] == ["answers", "labels", "again"]


def test_several_models_and_what_is_sent(tmp_path: Path) -> None:
    first, second = Asked(reply), Asked(lambda body, _: said(f"other {body['model']}"))
    topics(tmp_path, "tea")
    sampling = {"temperature": 0.5, "max_tokens": 9, "extra": {"top_k": 3, "anything": [1]}}
    steps = {
        "a": {
            "rows": "topics.jsonl",
            "prompt": "{{ topic }}",
            "samples": 2,
            "model": ["generator", "other"],
            "sampling": sampling,
        }
    }
    with ChatServer(first) as one, ChatServer(second) as two:
        content = recipe(one.url, steps)
        content["models"]["other"] = {"url": two.url, "model": "tiny", "seed": False}
        run(tmp_path, content)
    assert [row["model"] for row in rows(tmp_path)] == ["stand-in"] * 2 + ["tiny"] * 2
    assert {body["model"] for body in first.bodies} == {"stand-in"}
    assert len({body["seed"] for body in first.bodies}) == 2
    assert second.bodies[0] == {
        "model": "tiny",
        "messages": [turn(USER, "tea")],
        "temperature": 0.5,
        "top_p": 1.0,
        "max_tokens": 9,
        "top_k": 3,
        "anything": [1],
    }


def test_a_dialogue_swaps_the_roles(standin: ChatServer, asked: Asked, tmp_path: Path) -> None:
    topics(tmp_path, "tea")
    steps = {
        "talk": {
            "rows": "topics.jsonl",
            "system": "Be kind.",
            "prompt": "What is {{ topic }}?",
            "turns": {"count": 3, "user": "You are curious about {{ topic }}."},
        }
    }
    run(tmp_path, recipe(standin.url, steps))
    (row,) = rows(tmp_path)
    messages = row["messages"]
    roles = [part["role"] for part in messages]
    assert roles == ["system", USER, ASSISTANT, USER, ASSISTANT, USER, ASSISTANT]
    asked_as_user = [
        body["messages"] for body in asked.bodies if "curious" in body["messages"][0]["content"]
    ]
    assert len(asked_as_user) == 2
    assert asked_as_user[1] == [
        turn(USER, "You are curious about tea."),
        turn(ASSISTANT, messages[1]["content"]),
        turn(USER, messages[2]["content"]),
        turn(ASSISTANT, messages[3]["content"]),
        turn(USER, messages[4]["content"]),
    ]
    assert [entry["stage"] for entry in row["provenance"]] == [
        "talk.1",
        "talk.2.user",
        "talk.2",
        "talk.3.user",
        "talk.3",
    ]
    count = len(asked.bodies)
    run(tmp_path, recipe(standin.url, steps))
    assert len(asked.bodies) == count == 5


def test_a_revision_replaces_the_answer(standin: ChatServer, asked: Asked, tmp_path: Path) -> None:
    topics(tmp_path, "tea")
    revise = {"critique": "Criticise {{ answer }}", "prompt": "Improve {{ critique }}", "rounds": 2}
    steps = {
        "answers": {"rows": "topics.jsonl", "prompt": "{{ topic }}"},
        "better": {"rows": "answers", "revise": revise},
    }
    run(tmp_path, recipe(standin.url, steps))
    (row,) = rows(tmp_path)
    assert row["messages"] == [turn(USER, "tea"), turn(ASSISTANT, row["answer"])]
    assert row["critique"] == re.sub(r" / \d+$", "", row["answer"]).removeprefix("Improve ")
    assert row["draft"].startswith("Improve Criticise tea / ")
    assert len(asked.bodies) == 5


def test_each_turn_is_scored(standin: ChatServer, tmp_path: Path) -> None:
    messages = [turn(USER, "a"), turn(ASSISTANT, "b"), turn(USER, "c"), turn(ASSISTANT, "d")]
    write_rows(tmp_path / "in.jsonl", {"messages": messages})
    score = {"reward": "reward", "weights": {"helpfulness": 1.0}}
    steps = {
        "last": {"rows": "in.jsonl", "score": score},
        "each": {"rows": "in.jsonl", "score": score | {"every_turn": True}},
    }
    run(tmp_path, recipe(standin.url, steps))
    expected = [scores_of(text)["helpfulness"] for text in ("b", "d")]
    assert rows(tmp_path, "steps/last.jsonl")[0]["reward"] == expected[1]
    (row,) = rows(tmp_path)
    assert row["turn_rewards"] == expected
    assert row["reward"] == min(expected)
    assert row["turn_scores"] == [scores_of("b"), scores_of("d")]


def test_scores_that_cannot_be_read_are_a_failure(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", {"messages": [turn(USER, "a"), turn(ASSISTANT, "b")]})
    steps = {"a": {"rows": "in.jsonl", "attempts": 2, "score": {"reward": "reward"}}}
    with ChatServer(lambda _body, _inside: said("very good")) as server:
        with pytest.raises(NemotronError, match="1 of 1 questions failed"):
            run(tmp_path, recipe(server.url, steps))
        assert server.requests == 2
        assert run(tmp_path, recipe(server.url, steps), skip_failed=True).outputs["out.jsonl"] == 0


def judge(body: dict[str, Any], inside: int) -> Reply:
    """Prefer an answer with "good", whatever its place; prefer A if both are alike."""
    text = body["messages"][-1]["content"]
    if "Reply with one letter" not in text:
        return reply(body, inside)
    a, b = text.partition("[Answer B]")[::2]
    is_good = "good" in a.partition("[Answer A]")[2], "good" in b
    return said("My verdict: B" if is_good == (False, True) else "A")


def test_pairs_of_a_judge_that_agrees_with_itself(tmp_path: Path) -> None:
    def answers(question: str, *texts: str) -> list[dict[str, Any]]:
        return [{"messages": [turn(USER, question), turn(ASSISTANT, text)]} for text in texts]

    found = [*answers("1", "bad", "good"), *answers("2", "a", "b"), *answers("3", "good", "x")]
    write_rows(tmp_path / "in.jsonl", *found, *answers("4", "same", "same"), *answers("5", "x"))
    steps = {"pairs": {"rows": "in.jsonl", "pairs": {"judge": {"model": "generator"}}}}
    with ChatServer(judge) as server:
        manifest = run(tmp_path, recipe(server.url, steps))
        assert server.requests == 6
    pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows(tmp_path)]
    assert pairs == [
        ([turn(USER, "1")], [turn(ASSISTANT, "good")], [turn(ASSISTANT, "bad")]),
        ([turn(USER, "3")], [turn(ASSISTANT, "good")], [turn(ASSISTANT, "x")]),
    ]
    reasons = {"only one answer": 1, "equal answers": 1, "no agreement": 1}
    assert manifest.steps["pairs"].left_out == reasons


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "A"),
        ("**B**", "B"),
        ("It is close.\nThe answer is: T.", "T"),
        ("Verdict: a", "A"),
        ("A better answer would be longer", None),
        ("Answer B is better than answer A", None),
        ("", None),
    ],
)
def test_verdicts(text: str, expected: str | None) -> None:
    assert verdict(text) == expected


GOOD_AND_BAD = {
    "at_least_words": (2, "two words", "one"),
    "at_most_words": (2, "two words", "now three words"),
    "sentences": (2, "One. Two!", "One... or two"),
    "paragraphs": (2, "One\n\nTwo", "One\nTwo"),
    "bullets": (2, "- a\n- b", "- a\n-b"),
    "numbered": (2, "1. a\n2) b", "1. a"),
    "has_word": ("tea", "Tea, please", "teapot"),
    "no_word": ("tea", "teapot", "Tea, please"),
    "begins_with": ("Dear", "Dear Ada", "My dear"),
    "ends_with": ("bye.", "Well, bye.\n", "bye. Well"),
    "no_commas": (None, "Well bye", "Well, bye"),
    "lower_case": (None, "well, 7", "Well"),
    "upper_case": (None, "WELL, 7", "WELl"),
    "json": (None, '{"a": 1}', "{a: 1}"),
}


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_constraints(kind: str) -> None:
    value, good, bad = GOOD_AND_BAD[kind]
    constraint = {"kind": kind} if value is None else {"kind": kind, "value": value}
    assert fulfilled(constraint, good)
    assert not fulfilled(constraint, bad)
    assert str(value or "") in instruction(constraint)


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ("no_commas", "no constraint"),
        ({"kind": "rhymes"}, "known kinds: at_least_words"),
        ({"kind": "sentences", "value": "2"}, "must be int, not '2'"),
        ({"kind": "has_word", "value": 2}, "must be str, not 2"),
    ],
)
def test_wrong_constraints(constraint: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fulfilled(constraint, "text")
