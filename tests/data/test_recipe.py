"""What a recipe may say, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_core.errors import NemotronError
from nemotron_data.synthesis.kinds import Reward
from nemotron_data.synthesis.recipe import RECIPES, find_recipe, load_recipe
from nemotron_data.synthesis.scores import read_scores, weighted_sum

ASK = {"rows": "x.jsonl", "prompt": "{{ topic }}"}


def load(folder: Path, step: Any, **other: Any) -> None:
    content = {"steps": {"a": step}, "outputs": {"o.jsonl": {"rows": "a", "format": "messages"}}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content | other))
    recipe = load_recipe(path)
    list(recipe.inputs(folder))


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (ASK | {"colour": 1}, r"steps.a.colour: Extra"),
        ({"prompt": "x"}, r"steps.a.rows: Field required"),
        ({"rows": {"cross": ["x"]}, "prompt": "x"}, r"steps.a.rows: give a step or file"),
        (ASK | {"prompt": "{{ topic"}, r"steps.a.prompt: not a template"),
        (ASK | {"messages": [{"role": "user", "content": "x"}]}, "one of prompt and messages"),
        (ASK | {"samples": 0}, r"steps.a.samples"),
        (ASK | {"samples": 2, "sampling": {"temperature": 0}}, "are all the same"),
        (ASK | {"model": "other"}, r"steps.a: there is no model 'other', but generator"),
        (ASK | {"list": {"count": 3}}, r"steps.a.list.as: Field required"),
        (ASK | {"turns": {"count": 1, "user": "x"}}, r"steps.a.turns.count"),
        ({"rows": "x", "score": {}}, "steps.a.score: give one of reward, truth"),
        ({"rows": "x", "filter": {}}, "give where or best"),
        ({"rows": "x", "filter": {"where": "reward >"}}, r"filter.where: not an expression"),
        ({"rows": "x", "dedup": {"text": "x", "similarity": 2}}, r"dedup.similarity"),
        ({"rows": "x", "safety": {}}, r"safety.*model: Field required"),
        ({"rows": "a", "prompt": "x"}, "rows come from 'a', which is not an earlier step"),
        ("x", "steps.a: "),
    ],
)
def test_wrong_steps(step: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=reason):
        load(tmp_path, step)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"steps": {}}, "steps: "),
        ({"steps": {"A b": ASK}}, r"steps.A b: String should match"),
        ({"outputs": {"o.jsonl": {"rows": "b", "format": "messages"}}}, "there is no step 'b'"),
        ({"outputs": {"o.csv": {"rows": "a", "format": "messages"}}}, r"outputs.o.csv"),
        ({"outputs": {"../o.jsonl": {"rows": "a", "format": "messages"}}}, r"outputs.../o.jsonl"),
        ({"outputs": {"o.jsonl": {"rows": "a", "format": "csv"}}}, r"outputs.o.jsonl.format"),
        ({"models": {"generator": {"url": "http://x", "key": "x"}}}, "models.generator.key"),
        ({"colour": 1}, "colour: Extra"),
        ({"generate": {"rows": "x"}}, "the recipe: a recipe of an earlier version: write steps"),
    ],
)
def test_wrong_recipes(other: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=reason):
        load(tmp_path, ASK, **other)


def test_names_of_models_and_steps_on_the_command_line(tmp_path: Path) -> None:
    path = find_recipe("open-qa")
    recipe = load_recipe(path, {"generator": ["http://a", "http://b"]}, {"topics": ["mine.csv"]})
    assert recipe.models["generator"].urls == ["http://a", "http://b"]
    assert dict(recipe.inputs(tmp_path))["topics"] == [Path("mine.csv").resolve()]
    with pytest.raises(NemotronError, match="no model 'other', but generator, reward"):
        load_recipe(path, {"other": ["http://a"]})
    with pytest.raises(NemotronError, match="no step 'other', but topics"):
        load_recipe(path, None, {"other": ["a"]})
    with pytest.raises(NemotronError, match=r"no such recipe .*shipped: closed-qa, dialogue"):
        find_recipe("opne-qa")


def test_every_shipped_recipe_reads_files_that_are_shipped() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert len(names) == 13
    for name in names:
        path = find_recipe(name)
        for _step, sources in load_recipe(path).inputs(path.parent):
            assert all(source.is_file() for source in sources if isinstance(source, Path))


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
    weights = Reward(reward="reward").weights
    text = "helpfulness:1.5,correctness:2,coherence:4,complexity:0.5,verbosity:1"
    assert weighted_sum(read_scores(text), weights) == pytest.approx(
        0.3 * 1.5 + 0.74 * 2 + 0.46 * 4 + 0.47 * 0.5 - 0.33
    )
