"""A recipe for synthetic data: named steps, the models that they ask, and the files they end in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from nemotron_core.errors import NemotronError
from nemotron_data.options import DEFAULT_URL
from nemotron_data.synthesis.fields import Inputs, Strict
from nemotron_data.synthesis.kinds import (
    Ask,
    Decontaminate,
    Dedup,
    Dialogue,
    Filter,
    Pairs,
    Revise,
    Score,
    Step,
)
from nemotron_data.synthesis.safety import Guard

Value = TypeVar("Value")
RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the recipes that are shipped."""
KINDS = ("turns", "revise", "score", "safety", "filter", "dedup", "decontaminate", "pairs")
"""Keys that decide the kind of a step. A step without any of them asks, or only passes rows on."""
NOT_THERE = {
    "critique": "it is a part of revise: {critique: …, prompt: …}",
}
"""Keys that one may expect, with what to do instead."""


class Model(Strict):
    """A model that steps ask: one server or several with the same engine."""

    url: str | list[str] = DEFAULT_URL
    model: str | None = None
    """Its name at the server. `None` means the first one that the server has."""
    key_variable: str | None = None
    """Environment variable with the API key, in place of the usual ones."""
    seed: bool = True
    """Whether requests have a seed; some servers refuse it."""

    @property
    def urls(self) -> list[str]:
        return [self.url] if isinstance(self.url, str) else self.url


class Output(Strict):
    """A file of training data."""

    rows: str
    """Name of the step whose rows are written."""
    format: Literal["messages", "sharegpt", "nemo", "trl", "nemo-aligner", "helpsteer2", "columns"]


def _kind(step: Any) -> str:
    if not isinstance(step, Mapping):
        return "rows"
    for kind in KINDS:
        if kind in step:
            return kind
    return "ask" if "prompt" in step or "messages" in step else "rows"


AnyStep = Annotated[
    Annotated[Ask, Tag("ask")]
    | Annotated[Dialogue, Tag("turns")]
    | Annotated[Revise, Tag("revise")]
    | Annotated[Score, Tag("score")]
    | Annotated[Guard, Tag("safety")]
    | Annotated[Filter, Tag("filter")]
    | Annotated[Dedup, Tag("dedup")]
    | Annotated[Decontaminate, Tag("decontaminate")]
    | Annotated[Pairs, Tag("pairs")]
    | Annotated[Step, Tag("rows")],
    Discriminator(_kind),
]
StepName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
OutputName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(jsonl|parquet)$")]


class Recipe(Strict):
    """All settings of a recipe. Unknown keys are refused.

    The same `seed` gives the same samples, another one gives other samples.
    """

    seed: int = 0
    models: dict[StepName, Model] = Field(default_factory=lambda: {"generator": Model()})
    steps: dict[StepName, AnyStep] = Field(min_length=1)
    outputs: dict[OutputName, Output] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _is_of_this_version(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and "generate" in content:
            raise ValueError("a recipe of an earlier version: write steps (docs/synthesize.md)")
        return content

    @field_validator("steps", mode="before")
    @classmethod
    def _are_there(cls, steps: Any) -> Any:
        for name, step in steps.items() if isinstance(steps, Mapping) else ():
            for key in NOT_THERE.keys() & (step if isinstance(step, Mapping) else ()):
                raise ValueError(f"{name}.{key} is no kind of step: {NOT_THERE[key]}")
        return steps

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        for name, step in self.steps.items():
            for model in step.asked_models:
                if model not in self.models:
                    known = ", ".join(self.models)
                    raise ValueError(f"steps.{name}: there is no model {model!r}, but {known}")
        for name, output in self.outputs.items():
            if output.rows not in self.steps:
                raise ValueError(f"outputs.{name}: there is no step {output.rows!r}")
        return self

    def inputs(self, folder: Path) -> Iterator[tuple[str, list[str | Path]]]:
        """Yield the name of each step, with the steps and files that its rows come from.

        Paths are relative to `folder`, that of the recipe. Raises `NemotronError` for what is
        neither an earlier step nor a file.
        """
        earlier: list[str] = []
        for name, step in self.steps.items():
            sources: list[str | Path] = []
            for source in Inputs.of(step.rows).names:
                if source in earlier:
                    sources.append(source)
                    continue
                if source in self.steps:
                    raise NemotronError(
                        f"the rows come from {source!r}, which is not an earlier step",
                        where=f"steps.{name}.rows",
                        remedy=f"move {source!r} before {name!r}",
                    )
                sources.append(folder / source)
            earlier.append(name)
            yield name, sources


def find_recipe(name: str) -> Path:
    """Return the path of a recipe: a file, or the name of one that is shipped.

    Raises `NemotronError` if there is neither.
    """
    path, shipped = Path(name), RECIPES / f"{name}.yaml"
    if path.is_file() or path.suffix in (".yaml", ".yml") or not shipped.is_file():
        if not path.is_file():
            names = ", ".join(sorted(found.stem for found in RECIPES.glob("*.yaml")))
            raise NemotronError("there is no such recipe", where=name, remedy=f"shipped: {names}")
        return path
    return shipped


def load_recipe(
    path: Path,
    urls: Mapping[str, list[str]] | None = None,
    files: Mapping[str, list[str]] | None = None,
) -> Recipe:
    """Read a recipe. `urls` take the place of its models' URLs, and `files` of its steps' rows.

    Raises `NemotronError` that names the key if one is wrong.
    """
    try:
        recipe = Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NemotronError(f"cannot read: {error}", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        if place[:1] == ["steps"] and len(place) > 2:
            del place[2]  # the kind of the step
        key = ".".join(part for part in place if part != "[key]") or "the recipe"
        reason = first["msg"].removeprefix("Value error, ")
        raise NemotronError(f"{key}: {reason}", where=path) from error
    models, steps = dict(recipe.models), dict(recipe.steps)
    for name, values in (urls or {}).items():
        model = _known(models, name, "--url", "model")
        models[name] = model.model_copy(update={"url": values})
    for name, values in (files or {}).items():
        step = _known(steps, name, "--rows", "step")
        steps[name] = step.model_copy(
            update={"rows": [str(Path(file).resolve()) for file in values]}
        )
    return recipe.model_copy(update={"models": models, "steps": steps})


def _known(values: Mapping[str, Value], name: str, where: str, what: str) -> Value:
    if name not in values:
        known = ", ".join(values)
        raise NemotronError(f"there is no {what} {name!r}, but {known}", where=where)
    return values[name]
