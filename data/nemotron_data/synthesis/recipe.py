"""A recipe for synthetic data: its typed settings, and the prompts that its templates make."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nemotron_core.errors import NemotronError
from nemotron_data.options import MODEL
from nemotron_data.rows.template import parse_template, render

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""Attributes of HelpSteer2, in the order in which Nemotron-4-340B-Reward gives their scores."""
Attribute = Literal["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
WEIGHTS: dict[Attribute, float] = {
    "helpfulness": 0.3,
    "correctness": 0.74,
    "coherence": 0.46,
    "complexity": 0.47,
    "verbosity": -0.33,
}
"""Weights of the attributes in the reward, from the reward model's card."""
NAME_DIGITS = 16
"""Hexadecimal digits in the name of a prompt."""
REWARD_MODEL = "nvidia/nemotron-4-340b-reward"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Generate(_Strict):
    """Settings of the generated answers: server, prompts and sampling."""

    url: str
    rows: Path
    """JSONL or CSV file with the seed rows; its path is relative to the recipe's folder."""
    prompt: str
    """Jinja template of the user message, over a row's columns."""
    system: str | None = None
    """Jinja template of the system message."""
    samples: int = Field(1, ge=1, le=1000)
    """Number of answers to each prompt, each generated with its own seed."""
    model: str = MODEL
    max_tokens: int = Field(1024, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    key_variable: str = "NEMOTRON_API_KEY"
    """Name of the environment variable with the server's API key."""

    @model_validator(mode="after")
    def _differing_samples(self) -> Generate:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are all the same")
        return self

    @field_validator("prompt", "system")
    @classmethod
    def _is_a_template(cls, text: str | None) -> str | None:
        if text is not None:
            parse_template(text)
        return text


class Score(_Strict):
    """The reward model: a chat endpoint that answers with `attribute:score,…`."""

    url: str
    model: str = REWARD_MODEL
    weights: dict[Attribute, float] = Field(default_factory=lambda: dict(WEIGHTS), min_length=1)
    key_variable: str = "NEMOTRON_API_KEY"

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("the URL of a reward model begins with http:// or https://")
        return url


class Keep(_Strict):
    """Conditions under which answers become training data."""

    threshold: float | None = None
    """Smallest reward of an answer that is kept."""
    best: int | None = Field(None, ge=1)
    """Number of answers to keep per prompt, ranked by reward."""
    margin: float = Field(0.0, ge=0)
    """The rewards of a preference pair differ by more than this."""
    truncated: bool = False
    """Whether answers that `max_tokens` cut off are kept too."""


class Recipe(_Strict):
    """All settings of a recipe. Unknown keys are refused.

    The same `seed` gives the same samples, another one gives other samples.
    """

    seed: int = 0
    generate: Generate
    score: Score
    keep: Keep = Field(default_factory=lambda: Keep.model_validate({}))


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises `NemotronError` that names the key if one is wrong."""
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NemotronError(f"cannot read: {error}", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the recipe"
        raise NemotronError(f"{key}: {first['msg']}", where=path) from error


def seed_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of the line and the columns of each seed row.

    Raises `NemotronError` if a line is not a row.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    if None in row or None in row.values():
                        raise ValueError(f"line {reader.line_num} has another number of columns")
                    yield reader.line_num, row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    content = json.loads(line)
                    if not isinstance(content, dict):
                        raise ValueError(f"line {number} is not a JSON object")
                    yield number, content
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise NemotronError(f"not rows of JSONL or CSV: {error}", where=path) from error


def prompts(recipe: Recipe, rows: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield a name and messages for each seed row whose prompt differs from all before it.

    The name is made of the messages, so it stays if rows are added before it.

    Raises `NemotronError` if a row lacks a column of the template, or if its prompt is empty.
    """
    templates = {"user": parse_template(recipe.generate.prompt)}
    if recipe.generate.system is not None:
        templates["system"] = parse_template(recipe.generate.system)
    seen: set[bytes] = set()
    for number, row in seed_rows(rows):
        try:
            texts = {role: render(template, row) for role, template in templates.items()}
        except ValueError as error:
            raise NemotronError(str(error), where=f"{rows}:{number}") from error
        messages = [
            {"role": role, "content": texts[role]} for role in ("system", "user") if role in texts
        ]
        if not texts["user"].strip():
            raise NemotronError("the prompt is empty", where=f"{rows}:{number}")
        key = content_hash(messages)
        if key not in seen:
            seen.add(key)
            yield key.hex()[:NAME_DIGITS], messages


def content_hash(content: object) -> bytes:
    """Return the SHA-256 of the content as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).digest()
