"""The manifest beside an output: everything that is needed to make the same data again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.batch.statistics import Summary
from nemotron_data.options import Value

LONGEST_VALUE = 24
"""Characters of a value in an error message; longer ones are cut."""


class Manifest(BaseModel):
    """A run's input, settings and server, and what the last run did.

    A row's seed is the one that it sets, or `row_seed` of the run's seed and its custom_id. So it
    is known without the output.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[2] = 2
    source: str
    """Path of the input, or "standard input"."""
    rows_sha256: str
    """SHA-256 (hex) of the keys of the input's rows, which are in the `id` of each result."""
    seed: int | None
    defaults: dict[str, Value]
    """Keys of a request body for rows that do not set them."""
    server: dict[str, Value]
    """The server's description of itself: model, engine, checkpoint, template."""
    rows: int
    """Number of rows of the input."""
    finished: int | None = None
    """Number of rows in the output when a run came to its end."""
    failed: int | None = None
    """Number of failed rows when a run came to its end."""
    concurrency: dict[str, int] = Field(default_factory=dict)
    """Number of requests at once that the last run found for each URL."""
    last_run: Summary | None = None
    """What the last run that sent requests did."""


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest of an output, or `None` if the file does not exist.

    Raises `NemotronError` if it cannot be read.
    """
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ValueError) as error:
        raise NemotronError(
            f"not a manifest of a batch: {error}",
            where=path,
            remedy="name another output, or remove it together with the output",
        ) from error


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of an output in one step. Raises `NemotronError` if that fails."""
    write_atomically(path, manifest.model_dump_json(indent=2) + "\n")


def check_same(
    output: Path, before: Manifest, now: Manifest, are_engines_compared: bool = True
) -> None:
    """Raise `NemotronError` if the rows of two runs must not be in one file; it names each reason.

    Values that a server did not report in one of the runs are not compared.
    """
    values: list[tuple[str, Value, Value]] = [
        ("--seed", before.seed, now.seed),
        *_pairs("", before.defaults, now.defaults),
    ]
    if are_engines_compared:
        servers = _pairs("server's ", before.server, now.server)
        values += [pair for pair in servers if None not in pair]
    differences = [
        f"{name} was {_short(old)} and is {_short(new)}" for name, old, new in values if old != new
    ]
    if differences:
        raise NemotronError(
            f"the output was begun otherwise: {'; '.join(differences)}",
            where=output,
            remedy="restore that, or name another output",
        )


def _pairs(
    prefix: str, before: dict[str, Value], now: dict[str, Value]
) -> list[tuple[str, Value, Value]]:
    names = sorted(before.keys() | now.keys())
    return [(f"{prefix}{name}", before.get(name), now.get(name)) for name in names]


def _short(value: Value) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE // 2 + 1]}…"
