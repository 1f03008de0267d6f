"""Recipes: the real model generates, and a stand-in for the reward model scores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_core.errors import NemotronError
from nemotron_data.synthesis.recipe import Recipe, load_recipe, prompts
from nemotron_data.synthesis.reward import read_scores, reward
from nemotron_serve.model_server import ModelServer
from tests.standins.chat_server import ChatServer, Reply, refused, said
from tests.standins.reward_server import answer as score
from tests.standins.reward_server import reward_server, scores_of

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
WEIGHTS = (0.3, 0.74, 0.46, 0.47, -0.33)
SAMPLES = 6


@pytest.fixture
def scorer() -> Iterator[ChatServer]:
    with reward_server() as standin:
        yield standin


def synthesize(recipe: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [NEMOTRON, "synthesize", str(recipe), "-o", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def write_recipe(folder: Path, generate: dict[str, Any], score_url: str, **keep: Any) -> Path:
    rows = [{"topic": "the sky"}, {"topic": "tea"}, {"topic": "{{ 7 * 7 }}"}, {"topic": "tea"}]
    (folder / "topics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "seed": 5,
        "generate": {
            "rows": "topics.jsonl",
            "prompt": "Tell me about {{ topic }}.",
            "samples": SAMPLES,
            "max_tokens": 12,
            "temperature": 2.0,
            **generate,
        },
        "score": {"url": score_url},
        "keep": {"truncated": True, **keep},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def worth(answer: str) -> float:
    return sum(w * s for w, s in zip(WEIGHTS, scores_of(answer).values(), strict=True))


def test_generate_score_keep(server: ModelServer, scorer: ChatServer, tmp_path: Path) -> None:
    url = f"grpc://{server.endpoints.address}:{server.endpoints.grpc}"
    recipe = write_recipe(tmp_path, {"url": url}, scorer.url, threshold=1.0, best=2, margin=0.5)
    out = tmp_path / "out"
    # One at a time: what else is in an engine's batch may change the last bits of a logit.
    one_by_one = ["--concurrency", "1"]
    done = synthesize(recipe, out, *one_by_one)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert report["prompts"] == 3  # tea only once
    assert report["samples"] == report["answers"] == 3 * SAMPLES
    assert read(out / "1-prompts.jsonl")[-1]["messages"] == [
        {"role": "user", "content": "Tell me about {{ 7 * 7 }}."}
    ]
    answers: dict[str, set[str]] = defaultdict(set)
    for row in read(out / "2-answers.jsonl"):
        text = row["response"]["body"]["choices"][0]["message"]["content"]
        answers[row["custom_id"].rpartition("-sample-")[0]].add(text)
    distinct = {name: {text for text in texts if text.strip()} for name, texts in answers.items()}
    assert max(map(len, distinct.values())) > 2  # each sample has a seed of its own
    assert report["scored"] == sum(map(len, distinct.values())) == scorer.requests
    sft: dict[str, list[float]] = defaultdict(list)
    for row in read(out / "sft.jsonl"):
        *_prompt, answer = row["messages"]
        name = row["id"].rpartition("-sample-")[0]
        assert answer["content"] in distinct[name]
        assert row["scores"] == scores_of(answer["content"])
        assert row["reward"] == pytest.approx(worth(answer["content"]))
        sft[name].append(row["reward"])
    for name, texts in distinct.items():
        best = sorted((worth(text) for text in texts if worth(text) >= 1.0), reverse=True)[:2]
        assert sft[name] == pytest.approx(best)
    pairs = {row["id"]: row for row in read(out / "preferences.jsonl")}
    for name, texts in distinct.items():
        ordered = sorted(map(worth, texts))
        if ordered[-1] >= 1.0 and ordered[-1] - ordered[0] > 0.5:
            pair = pairs.pop(name)
            assert pair["prompt"][-1]["role"] == "user"
            assert worth(pair["chosen"][0]["content"]) == pytest.approx(ordered[-1])
            assert worth(pair["rejected"][0]["content"]) == pytest.approx(ordered[0])
            assert pair["chosen_reward"] > pair["rejected_reward"]
    assert not pairs

    # Again: nothing is asked. With another threshold: still nothing, but more is kept.
    before = (out / "sft.jsonl").read_bytes()
    assert synthesize(recipe, out).returncode == 0
    assert (out / "sft.jsonl").read_bytes() == before
    write_recipe(tmp_path, {"url": "grpc://127.0.0.1:1"}, "http://127.0.0.1:1", threshold=-100)
    assert synthesize(recipe, out).returncode == 0
    assert len(read(out / "sft.jsonl")) == report["scored"]
    assert scorer.requests == report["scored"]

    # Elsewhere: the same data. Another prompt in the same folder: refused.
    write_recipe(tmp_path, {"url": url}, scorer.url, threshold=1.0, best=2, margin=0.5)
    assert synthesize(recipe, tmp_path / "twin", *one_by_one).returncode == 0
    assert (tmp_path / "twin" / "sft.jsonl").read_bytes() == before
    write_recipe(tmp_path, {"url": url, "prompt": "{{ topic }}?"}, scorer.url)
    done = synthesize(recipe, out)
    assert done.returncode == 1
    assert "begun with another recipe" in done.stderr


def test_rows_that_fail_stop_it_or_are_skipped(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], inside: int) -> Reply:
        if "tea" in body["messages"][0]["content"]:
            return refused(400, "no tea")
        if body["messages"][-1]["role"] == "assistant":
            return score(body, inside)
        return said(f"seed {body['seed']}")

    with ChatServer(answer) as standin:
        recipe = write_recipe(tmp_path, {"url": standin.url}, standin.url)
        out = tmp_path / "out"
        done = synthesize(recipe, out)
        assert done.returncode == 1
        assert f"{SAMPLES} of {3 * SAMPLES} rows failed" in done.stderr
        assert "--skip-failed" in done.stderr
        for _ in range(2):
            done = synthesize(recipe, out, "--skip-failed")
            assert done.returncode == 0, done.stderr
            report = json.loads(done.stdout)
            assert report["samples"] == 3 * SAMPLES
            assert report["answers"] == report["scored"] == 2 * SAMPLES
            assert len(read(out / "sft.jsonl")) == 2 * SAMPLES


def test_only_added_and_changed_topics_are_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(body: dict[str, Any], inside: int) -> Reply:
        asked.append(f"{body['messages'][0]['content']} {len(body['messages'])}")
        if body["messages"][-1]["role"] == "assistant":
            return score(body, inside)
        return said(f"{body['messages'][0]['content']} {body['seed']}")

    def asked_about(*topics: str) -> list[str]:
        """Return the questions of a run, each once for its answer and once for its score."""
        (tmp_path / "topics.jsonl").write_text(
            "".join(json.dumps({"topic": topic}) + "\n" for topic in topics)
        )
        asked.clear()
        done = synthesize(recipe, out)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["scored"] == len(read(out / "sft.jsonl")) == SAMPLES * len(topics)
        return sorted(asked)

    def questions(*topics: str) -> list[str]:
        return sorted(
            f"Tell me about {topic}. {turns}" for topic in topics for turns in [1, 2] * SAMPLES
        )

    with ChatServer(answer) as standin:
        recipe = write_recipe(tmp_path, {"url": standin.url}, standin.url)
        out = tmp_path / "out"
        assert asked_about("tea", "rice") == questions("tea", "rice")
        assert asked_about("milk", "tea", "rice") == questions("milk")
        assert asked_about("milk", "green tea", "rice") == questions("green tea")
        assert asked_about("rice", "milk") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "helpfulness:1",
        "helpfulness:1,correctness:1,coherence:1,complexity:1,verbosity:nan",
        "helpfulness:1,correctness:1,coherence:1,complexity:1,verbosity:",
        "helpfulness:1,helpfulness:1,correctness:1,coherence:1,complexity:1,verbosity:1",
        "helpfulness:1,correctness:1,coherence:1,complexity:1,verbosity:1,charm:1",
    ],
)
def test_scores_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"score|nan|float"):
        read_scores(text)


def test_the_card_s_weights() -> None:
    recipe = {"generate": {"url": "x", "rows": "x", "prompt": "x"}, "score": {"url": "http://x"}}
    weights = Recipe.model_validate(recipe).score.weights
    text = "helpfulness:1.5,correctness:2,coherence:4,complexity:0.5,verbosity:1"
    assert reward(read_scores(text), weights) == pytest.approx(
        0.3 * 1.5 + 0.74 * 2 + 0.46 * 4 + 0.47 * 0.5 - 0.33
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": "{{ topic"}, "generate.prompt: .*not a template"),
        ({"colour": 1}, "generate.colour"),
        ({"samples": 0}, "generate.samples"),
        ({"temperature": 0}, "are all the same"),
        ({"prompt": "{{ other }}"}, "topics.jsonl:1.*'other' is undefined|'other' is undefined"),
        ({"prompt": "{{ topic.__class__.__mro__ }}"}, "unsafe"),
        ({"prompt": "{{ '' }}"}, "the prompt is empty"),
        ({"rows": "nothing.jsonl"}, "not rows"),
    ],
)
def test_wrong_recipes_are_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {"url": "http://x", **change}, "http://x")
    with pytest.raises(NemotronError, match=reason):
        recipe = load_recipe(path)
        list(prompts(recipe, tmp_path / recipe.generate.rows))


def test_rows_from_csv(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text('topic,style\n"tea, green",short\nrice,long\n')
    generate = {"url": "http://x", "system": "Be {{ style }}.", "prompt": "{{ topic }}?"}
    recipe = load_recipe(write_recipe(tmp_path, generate, "http://x"))
    first, second = prompts(recipe, rows)
    assert first[0] != second[0]
    assert first[1] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "tea, green?"},
    ]
    assert second[1][1]["content"] == "rice?"
    rows.write_text("topic,style\nonly one\n")
    with pytest.raises(NemotronError, match="line 2 has another number of columns"):
        list(prompts(recipe, rows))
