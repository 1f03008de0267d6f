"""What a run was made from, beside its output: enough to make the same data again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically

SUFFIX = ".manifest.json"
Value = str | int | float | bool | None


class Manifest(BaseModel):
    """A row's seed is its own, or that of `row_seed`: so it can be known without the output."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    source: str
    source_sha256: str
    """Of the input's lines."""
    seed: int | None
    defaults: dict[str, Value]
    """For rows that do not say it themselves."""
    server: dict[str, Value]
    """What the server told of itself: model, engine, template."""
    rows: int
    """Lines of the input."""
    finished: int | None = None
    """Rows in the output when a run came to its end."""
    failed: int | None = None


def row_seed(seed: int, custom_id: str) -> int:
    """Of the first 6 bytes of SHA-256 of "seed:custom_id": below 2**48, so exact in any JSON.

    >>> row_seed(0, "question-1")
    280154119006244
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{custom_id}".encode()).digest()[:6], "big")


def manifest_path(output: Path) -> Path:
    """Where an output's manifest is."""
    return output.with_name(output.name + SUFFIX)


def read_manifest(output: Path) -> Manifest | None:
    """None if there is none; NemotronError if it cannot be read."""
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
    """It is there whole or not at all."""
    write_atomically(manifest_path(output), manifest.model_dump_json(indent=2) + "\n")


def check_same(output: Path, before: Manifest, now: Manifest) -> None:
    """NemotronError says what differs, if rows of both runs must not be in one file.

    What a server did not tell in one of the runs cannot differ.
    """
    pairs: list[tuple[str, Value, Value]] = [
        ("the input's SHA-256", before.source_sha256, now.source_sha256),
        ("--seed", before.seed, now.seed),
        *_pairs("", before.defaults, now.defaults),
        *(pair for pair in _pairs("server's ", before.server, now.server) if None not in pair),
    ]
    differ = [
        f"{name} was {_short(old)} and is {_short(new)}" for name, old, new in pairs if old != new
    ]
    if differ:
        raise NemotronError(
            f"the output was begun otherwise: {'; '.join(differ)}",
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
    return text if len(text) <= 24 else f"{text[:13]}…"
