"""The shipped recipes from end to end: the tiny model answers, and stand-ins give the rewards and
judge what is safe."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_data.options import SynthesisOptions
from nemotron_data.synthesis.manifest import Manifest
from nemotron_data.synthesis.recipe import RECIPES
from nemotron_data.synthesis.run import synthesize
from nemotron_serve.model_server import ModelServer
from tests.data.runs import read
from tests.docs.blocks import blocks
from tests.standins.chat_server import ChatServer, Reply, said
from tests.standins.reward_server import reward_server

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
SHORT = {"max_tokens": 24, "temperature": 1.5, "extra": {"min_tokens": 12}}
"""The tiny model does not know these prompts: some of its answers would be empty, and others have
no end of their own."""


@pytest.fixture
def scorer() -> Iterator[ChatServer]:
    with reward_server() as standin:
        yield standin


@pytest.fixture
def guard() -> Iterator[ChatServer]:
    """A safety model that finds everything safe but what is about basil."""

    def judge(body: dict[str, Any], _inside: int) -> Reply:
        return said("unsafe\nO3" if "basil" in str(body["messages"]) else "safe")

    with ChatServer(judge) as standin:
        yield standin


def fit(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe whose steps accept what a tiny model says."""
    for step in recipe["steps"].values():
        if {"prompt", "messages", "revise"} & step.keys():
            step |= {"accept": ["any"], "sampling": SHORT}
            if step.get("list"):
                step["list"]["least"] = 1
        if judge := step.get("pairs", {}).get("judge"):
            choice = {"structured_outputs": {"choice": ["A", "B"]}}
            judge["sampling"] = {"max_tokens": 4, "temperature": 1.0, "extra": choice}
        if conditions := step.get("filter"):
            conditions.pop("where", None)
            conditions.setdefault("best", 1)
    return recipe


def run(name: str, folder: Path, urls: list[str], rows: list[str] | None = None) -> Manifest:
    recipes = folder / "recipes"
    shutil.copytree(RECIPES, recipes, dirs_exist_ok=True)
    path = recipes / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fit(yaml.safe_load(path.read_text())), sort_keys=False))
    output = folder / name
    options = SynthesisOptions(
        recipe=str(path), output=output, url=urls, rows=rows, preview=2, skip_failed=True
    )
    return synthesize(options)


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_makes_data(
    name: str, server: ModelServer, scorer: ChatServer, guard: ChatServer, tmp_path: Path
) -> None:
    generator = f"grpc://{server.endpoints.address}:{server.endpoints.grpc}"
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    url_of = {
        "generator": generator, "judge": generator, "reward": scorer.url, "guard": guard.url
    }  # fmt: skip
    urls = [f"{model}={url_of[model]}" for model in recipe["models"]]
    manifest = run(name, tmp_path, urls)
    folder = tmp_path / name / "preview"
    for step, counts in manifest.steps.items():
        lines = read((folder / "steps" / f"{step}.jsonl").read_bytes())
        assert len(lines) == counts.rows_out
        assert counts.rows_in > 0
    for output, description in recipe["outputs"].items():
        records = read((folder / output).read_bytes())
        assert len(records) == manifest.outputs[output]
        if output == "sft.jsonl":
            assert records
        for record in records:
            assert len(record["id"]) == 16
            if description["format"] == "messages":
                assert record["messages"][-1]["role"] == "assistant"
            if description["format"] == "trl":
                assert record["chosen"] != record["rejected"]
    if "reward" in recipe["models"]:
        assert scorer.requests > 0
    if "guard" in recipe["models"]:
        assert guard.requests == 2 * 2  # each question, and its answer
        assert manifest.steps["safe"].left_out == {"unsafe: O3": 1}
    # The same run asks nothing, so it needs no server.
    nowhere = [f"{model}=http://127.0.0.1:1" for model in recipe["models"]]
    failed = any("failed" in counts.left_out for counts in manifest.steps.values())
    again = run(name, tmp_path, urls if failed else nowhere)
    assert again.outputs == manifest.outputs


def test_a_second_round_names_the_first(
    server: ModelServer, scorer: ChatServer, tmp_path: Path
) -> None:
    generator = f"grpc://{server.endpoints.address}:{server.endpoints.grpc}"
    urls = [f"generator={generator}", f"reward={scorer.url}"]
    run("iterate", tmp_path / "first", urls)
    first = tmp_path / "first" / "iterate" / "preview"
    second = run("iterate", tmp_path / "second", urls, [f"earlier={first / 'sft.jsonl'}"])
    (earlier,) = second.inputs
    assert earlier.path == "sft.jsonl"
    assert earlier.made_by is not None
    prompts = [row["messages"][:-1] for row in read((first / "sft.jsonl").read_bytes())]
    again = tmp_path / "second" / "iterate" / "preview" / "sft.jsonl"
    assert [row["messages"][:-1] for row in read(again.read_bytes())] == prompts


PAGE = "docs/synthesize.md"


def test_the_tutorial(server: ModelServer, tmp_path: Path) -> None:
    """The page's own questions and recipe, on the tiny model."""
    block = next(block for block in blocks() if (block.page, block.label) == (PAGE, "demo"))
    files, *_ = block.text.partition("nemotron synthesize")
    subprocess.run(["bash", "-c", files], cwd=tmp_path, check=True)
    path = tmp_path / "recipe.yaml"
    url = f"grpc://{server.endpoints.address}:{server.endpoints.grpc}"
    options = SynthesisOptions(recipe=str(path), output=tmp_path / "data", url=[f"generator={url}"])
    manifest = synthesize(options)
    assert manifest.steps["answers"].rows_out == 12
    conversations = read((tmp_path / "data" / "sft.jsonl").read_bytes())
    assert {row["messages"][0]["content"] for row in conversations} == {
        "Why is the sky blue?",
        "What is photosynthesis?",
        "What is a glacier?",
    }
    assert any("How plants turn light" in row["messages"][1]["content"] for row in conversations)
