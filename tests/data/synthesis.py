"""Runs of `nemotron synthesize` in this process, and a stand-in that answers all its questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from nemotron_data.options import SynthesisOptions
from nemotron_data.synthesis.manifest import Manifest
from nemotron_data.synthesis.run import synthesize
from tests.data.runs import read
from tests.standins.chat_server import Reply, said
from tests.standins.reward_server import answer as score


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def topics(folder: Path, *names: str) -> None:
    write_rows(folder / "topics.jsonl", *({"topic": name} for name in names))


def recipe(
    url: str, steps: dict[str, Any], outputs: dict[str, Any] | None = None, **other: Any
) -> dict[str, Any]:
    """Return a recipe, by default with one output of the last step's rows."""
    last = {"rows": list(steps)[-1], "format": "columns"}
    models = {"generator": {"url": url}, "reward": {"url": url, "model": "judge", "seed": False}}
    return {"models": models, "steps": steps, "outputs": outputs or {"out.jsonl": last}} | other


def run(folder: Path, content: dict[str, Any], **options: Any) -> Manifest:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return synthesize(SynthesisOptions(recipe=str(path), output=folder / "out", **options))


def rows(folder: Path, name: str = "out.jsonl") -> list[dict[str, Any]]:
    return read((folder / "out" / name).read_bytes())


def reply(body: dict[str, Any], inside: int = 0) -> Reply:
    """Answer as a model or, to a conversation that ends with an answer, as a reward model."""
    last = body["messages"][-1]
    if last["role"] == "assistant":
        return score(body, inside)
    if last["content"].startswith("A list"):
        return said(f"1. first of {last['content']}\n2. second of {last['content']}")
    return said(f"{last['content']} / {body.get('seed')}")
