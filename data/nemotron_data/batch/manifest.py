"""The manifest beside an output: everything that is needed to make the same data again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.options import Value

SUFFIX = ".manifest.json"
LONGEST_VALUE = 24
"""Characters of a value in an error message; longer ones are cut."""


class Manifest(BaseModel):
    """A run's input, settings and server.

    A row's seed is the one that it sets, or `row_seed` of the run's seed and its custom_id. So it
    is known without the output.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    source: str
    """Path of the input, or "standard input"."""
    source_sha256: str
    """SHA-256 (hex) of the input's lines."""
    seed: int | None
    defaults: dict[str, Value]
    """Keys of a request body for rows that do not set them."""
    server: dict[str, Value]
    """The server's description of itself: model, engine, checkpoint, template."""
    rows: int
    """Number of lines of the input that are not empty."""
    finished: int | None = None
    """Number of rows in the output when a run came to its end."""
    failed: int | None = None
    """Number of failed rows when a run came to its end."""


def row_seed(seed: int, custom_id: str) -> int:
    """Return the seed of a row that sets none.

    It is the first 6 bytes, big-endian, of the SHA-256 of "seed:custom_id". So it is below 2**48
    and exact in any JSON parser.

    >>> row_seed(0, "question-1")
    280154119006244
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{custom_id}".encode()).digest()[:6], "big")


def manifest_path(output: Path) -> Path:
    """Return the path of an output's manifest."""
    return output.with_name(output.name + SUFFIX)


def read_manifest(output: Path) -> Manifest | None:
    """Return the manifest of an output, or `None` if the file does not exist.

    Raises `NemotronError` if it cannot be read.
    """
    path = manifest_path(output)
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


def write_manifest(output: Path, manifest: Manifest) -> None:
    """Write the manifest of an output in one step. Raises `NemotronError` if that fails."""
    write_atomically(manifest_path(output), manifest.model_dump_json(indent=2) + "\n")


def check_same(output: Path, before: Manifest, now: Manifest) -> None:
    """Raise `NemotronError` if the rows of two runs must not be in one file; it names each reason.

    Values that a server did not report in one of the runs are not compared.
    """
    values: list[tuple[str, Value, Value]] = [
        ("the input's SHA-256", before.source_sha256, now.source_sha256),
        ("--seed", before.seed, now.seed),
        *_pairs("", before.defaults, now.defaults),
        *(pair for pair in _pairs("server's ", before.server, now.server) if None not in pair),
    ]
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
