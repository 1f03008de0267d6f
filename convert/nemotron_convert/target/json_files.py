"""Writing and checking the JSON files of an output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically

Model = TypeVar("Model", bound=BaseModel)


def write_json(path: Path, content: Mapping[str, object], *, ensure_ascii: bool = True) -> None:
    """Write an indented JSON file in one step. Raises `NemotronError` if it cannot be written."""
    text = json.dumps(content, indent=2, ensure_ascii=ensure_ascii)
    write_atomically(path, text + "\n")


def parse_json(
    model: type[Model], data: bytes, where: object, *, remedy: str | None = None
) -> Model:
    """Return JSON as a pydantic model. Raises `NemotronError` that names the first wrong key."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise NemotronError(f"{key}: {first['msg']}", where=where, remedy=remedy) from error
