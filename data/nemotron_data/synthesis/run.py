"""A run of a recipe: all steps in their order, then the files of training data.

::

    OUT/steps/STEP.jsonl   the rows of each step
    OUT/asked/STAGE.jsonl  what the models answered, a batch that is resumed
    OUT/…                  the outputs, README.md (a dataset card), manifest.json
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_data.batch.lock import LOCK, held
from nemotron_data.options import SynthesisOptions
from nemotron_data.rows.shard import parse_shard
from nemotron_data.synthesis import formats
from nemotron_data.synthesis.asker import ASKED, Asker
from nemotron_data.synthesis.card import write_card
from nemotron_data.synthesis.context import Context
from nemotron_data.synthesis.fields import Inputs
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
from nemotron_data.synthesis.manifest import Manifest, StepCounts, inputs_of
from nemotron_data.synthesis.recipe import Recipe, find_recipe, load_recipe
from nemotron_data.synthesis.report import write_report
from nemotron_data.synthesis.safety import Guard
from nemotron_data.synthesis.sharding import Sharded, check_shards, first_step
from nemotron_data.synthesis.steps.asking import ask
from nemotron_data.synthesis.steps.dialogue import dialogue
from nemotron_data.synthesis.steps.guarding import guard
from nemotron_data.synthesis.steps.pairing import pair
from nemotron_data.synthesis.steps.revision import revise
from nemotron_data.synthesis.steps.scoring import score
from nemotron_data.synthesis.steps.selection import decontaminate, deduplicate, keep
from nemotron_data.synthesis.tables import Combined, FileRows, Limited, Row, Rows, Table
from nemotron_data.transport.factory import server_urls

STEPS = "steps"
"""Folder of the rows of each step, in the run's."""
PREVIEW = "preview"
"""Folder inside the run's for a preview, whose answers are no part of the run."""


def _pass(_step: Step, _name: str, rows: Rows, _context: Context) -> Iterator[Row]:
    yield from rows


RUNNERS: dict[type[Step], Callable[[Any, str, Rows, Context], Iterator[Row]]] = {
    Ask: ask,
    Dialogue: dialogue,
    Revise: revise,
    Score: score,
    Guard: guard,
    Filter: keep,
    Dedup: deduplicate,
    Decontaminate: decontaminate,
    Pairs: pair,
    Step: _pass,
}
"""What runs each kind of step."""


def synthesize(options: SynthesisOptions) -> Manifest:
    """Run the steps of a recipe, of which each asks only what is not answered yet.

    After `NemotronError` or `Interrupted` the same call continues the run.
    """
    path = find_recipe(options.recipe)
    recipe = load_recipe(path, _pairs("--url", options.url), _pairs("--rows", options.rows))
    sources = dict(recipe.inputs(path.parent))
    _check_sources(recipe, path.parent, sources)
    if options.shard is not None:
        check_shards(recipe)
    folder = folder_of(options)
    if options.preview is not None:
        _check_folder(folder.parent)
    _check_folder(folder)
    with held(folder):
        return RecipeRun(recipe, path.parent, folder, options).run(sources)


def folder_of(options: SynthesisOptions) -> Path:
    """Return the folder of a run, of its shard, or of its preview."""
    folder = options.output
    if options.shard is not None:
        folder = Path(parse_shard(options.shard).output(f"{folder}/"))
    return folder if options.preview is None else folder / PREVIEW


class RecipeRun:
    """One run of a recipe in a folder."""

    def __init__(
        self, recipe: Recipe, recipe_folder: Path, folder: Path, options: SynthesisOptions
    ) -> None:
        self._recipe, self._folder, self._options = recipe, folder, options
        self._context = Context(Asker(recipe, folder, options), folder / STEPS, recipe_folder)
        self._tables: dict[str, Table] = {}

    def run(self, sources: dict[str, list[str | Path]]) -> Manifest:
        """Run all steps, write the outputs, and return the manifest."""
        self._context.steps.mkdir(exist_ok=True)
        counts: dict[str, StepCounts] = {}
        for name, step in self._recipe.steps.items():
            rows = Counted(self._rows(name, step, sources[name]))
            results = Counted(RUNNERS[type(step)](step, name, rows, self._context))
            self._tables[name] = self._context.table(name, results)
            counts[name] = StepCounts(
                rows_in=rows.count,
                rows_out=results.count,
                left_out=dict(self._context.left_out.get(name, {})),
            )
        for name, output in self._recipe.outputs.items():
            formats.write(self._folder / name, self._tables[output.rows], output.format)
        manifest = Manifest(
            recipe=self._recipe,
            inputs=inputs_of(self._recipe, self._context.recipe, sources),
            servers=self._context.asker.servers,
            steps=counts,
            outputs={
                name: counts[output.rows].rows_out for name, output in self._recipe.outputs.items()
            },
        )
        write_card(self._folder, manifest)
        manifest.write(self._folder)
        if self._options.report:
            write_report(self._folder, manifest)
        return manifest

    def _rows(self, name: str, step: Step, sources: list[str | Path]) -> Rows:
        inputs = [
            self._tables[source] if isinstance(source, str) else FileRows(source)
            for source in sources
        ]
        rows: Rows = inputs[0]
        if len(inputs) > 1:
            rows = Combined(inputs, Inputs.of(step.rows).how, f"steps.{name}.rows")
        if self._options.shard is not None and name == first_step(self._recipe):
            rows = Sharded(rows, parse_shard(self._options.shard))
        limits = [step.limit]
        if not any(isinstance(source, str) for source in sources):
            limits.append(self._options.preview)
        known = [limit for limit in limits if limit is not None]
        return Limited(rows, min(known)) if known else rows


class Counted:
    """Rows that are counted when they are read. `count` is that of the last reading."""

    def __init__(self, rows: Rows | Iterator[Row]) -> None:
        self._rows = rows
        self.count = 0

    def __iter__(self) -> Iterator[Row]:
        self.count = 0
        for row in self._rows:
            self.count += 1
            yield row


def _check_folder(folder: Path) -> None:
    """Raise `NemotronError` if the folder has data of something else."""
    try:
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=folder) from error
    if found - {PREVIEW, LOCK} and not found & {STEPS, ASKED}:
        raise NemotronError(
            "the folder holds something that is no run of a recipe",
            where=folder,
            remedy="name another one",
        )


def _pairs(option: str, values: list[str] | None) -> dict[str, list[str]]:
    """Return the values of an option `NAME=VALUE` by their names."""
    pairs: dict[str, list[str]] = {}
    for text in values or ():
        name, _equals, value = text.partition("=")
        if not value:
            raise NemotronError("not NAME=VALUE", where=f"{option} {text}")
        pairs.setdefault(name, []).append(value)
    return pairs


def _check_sources(recipe: Recipe, folder: Path, sources: dict[str, list[str | Path]]) -> None:
    """Raise `NemotronError` if a file is not there or a URL is none, before anything is written."""
    for model in recipe.models.values():
        server_urls(model.urls)
    for name, of_step in sources.items():
        step = recipe.steps[name]
        against = step.decontaminate.against if isinstance(step, Decontaminate) else []
        files = [source for source in of_step if isinstance(source, Path)]
        for path in [*files, *(folder / other for other in against)]:
            if not path.exists():
                raise NemotronError(
                    "there is neither such a file nor an earlier step of this name",
                    where=f"steps.{name}: {path}",
                )
