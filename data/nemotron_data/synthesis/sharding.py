"""A shard of a recipe: a part of the rows of its first step, and what comes of them.

Other steps whose rows are files, such as the forms that are crossed with topics, are whole in every
shard. So a recipe that would write rows of these alone, or mix them with those of the shard, cannot
be run in shards: all shards together would not be the whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_core.errors import NemotronError
from nemotron_data.rows.shard import Shard
from nemotron_data.synthesis.fields import Inputs
from nemotron_data.synthesis.recipe import Recipe
from nemotron_data.synthesis.tables import Row, Rows, to_line


class Sharded:
    """The rows of a source that belong to a shard, by their content."""

    def __init__(self, rows: Rows, shard: Shard) -> None:
        self._rows, self._shard = rows, shard

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            if self._shard.has_name(to_line(row).encode()):
                yield row


def first_step(recipe: Recipe) -> str:
    """Return the name of the step whose rows are split."""
    return next(iter(recipe.steps))


def check_shards(recipe: Recipe) -> None:
    """Raise `NemotronError` if a recipe cannot be run in shards; it names the step or output."""
    parted = {first_step(recipe)}
    for name, step in recipe.steps.items():
        inputs = Inputs.of(step.rows)
        of_shard = [source in parted for source in inputs.names]
        if not any(of_shard):
            continue
        if inputs.how == "cross" and sum(of_shard) > 1:
            raise _not_parted(f"steps.{name}.rows", "crosses rows of different shards")
        if inputs.how != "cross" and not all(of_shard):
            raise _not_parted(f"steps.{name}.rows", "mixes rows of a shard with others")
        parted.add(name)
    for name, output in recipe.outputs.items():
        if output.rows not in parted:
            raise _not_parted(f"outputs.{name}", "would be the same in every shard")


def _not_parted(where: str, what: str) -> NemotronError:
    return NemotronError(
        f"{what}, so the recipe has no shards",
        where=where,
        remedy="run it without --shard and --runner, or let all come from the first step",
    )
