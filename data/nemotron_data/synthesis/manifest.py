"""The manifest of a run: what it was made of, and the rows of each step."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from nemotron_core.errors import NemotronError
from nemotron_core.files import hash_file, write_atomically
from nemotron_data.synthesis.kinds import Decontaminate
from nemotron_data.synthesis.recipe import Recipe

MANIFEST = "manifest.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(_Strict):
    """A file that rows came from."""

    path: str
    sha256: str | None
    """`None` for a folder."""
    made_by: str | None = None
    """SHA-256 of the manifest of the run that made the file, if one lies beside it."""


class StepCounts(_Strict):
    """The rows of a step."""

    rows_in: int
    rows_out: int
    left_out: dict[str, int]
    """Number of rows that were left out, by reason."""


class Manifest(_Strict):
    """A run's recipe, inputs, servers and counts."""

    format_version: Literal[1] = 1
    recipe: Recipe
    inputs: list[Input]
    servers: dict[str, dict[str, Any]]
    """What the servers of each model say about themselves: model, engine, checkpoint, template."""
    steps: dict[str, StepCounts]
    outputs: dict[str, int]
    """Number of rows of each output."""

    def write(self, folder: Path) -> None:
        """Write the manifest in one step. Raises `NemotronError` if that fails."""
        write_atomically(folder / MANIFEST, self.model_dump_json(indent=2, by_alias=True) + "\n")


def inputs_of(recipe: Recipe, folder: Path, sources: dict[str, list[str | Path]]) -> list[Input]:
    """Return the files that a recipe reads, each once, with their hashes."""
    paths = [path for of_step in sources.values() for path in of_step if isinstance(path, Path)]
    for step in recipe.steps.values():
        if isinstance(step, Decontaminate):
            paths += [folder / path for path in step.decontaminate.against]
    inputs = []
    for path in dict.fromkeys(paths):
        try:
            digest = hash_file(path).sha256 if path.is_file() else None
            beside = path.parent / MANIFEST
            origin = hashlib.sha256(beside.read_bytes()).hexdigest() if beside.is_file() else None
        except OSError as error:
            raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
        inputs.append(Input(path=path.name, sha256=digest, made_by=origin))
    return inputs
