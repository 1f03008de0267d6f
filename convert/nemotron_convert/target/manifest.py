"""`manifest.json`: what a folder is, where it came from, and the hash of each of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemotron_core.errors import NemotronError
from nemotron_core.files import FileEntry, hash_file, text_digest

MANIFEST_NAME = "manifest.json"


class Manifest(BaseModel):
    """The record of one conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    source: str
    """Name of the `.nemo`."""
    format: Literal["trtllm", "hf"] = "trtllm"
    dtype: Literal["bf16", "fp8"]
    kv_cache_dtype: Literal["bf16", "fp8"] = "bf16"
    tp: int
    pp: int
    nonfinite: list[str] = []
    """Tensors of the source that hold NaN or Inf."""
    files: dict[str, FileEntry]

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) over all names and file hashes: the same for the same checkpoint."""
        lines = "".join(f"{e.sha256}  {name}\n" for name, e in sorted(self.files.items()))
        return text_digest(lines)

    def write(self, folder: Path) -> None:
        text = json.dumps(self.model_dump(), indent=2) + "\n"
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder; NemotronError if it is none."""
    path = folder / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise NemotronError(
            f"no {MANIFEST_NAME}: not a whole checkpoint",
            where=folder,
            remedy="name a folder that `nemotron convert` has written",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise NemotronError(f"{key}: {first['msg']}", where=path) from error


def changed_files(folder: Path, manifest: Manifest) -> list[str]:
    """Names of the files that are missing or not what the manifest says."""
    bad = []
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file() or hash_file(path) != expected:
            bad.append(name)
    return bad


def require_unchanged(folder: Path, manifest: Manifest) -> None:
    """Read every file and compare with the manifest; NemotronError names the changed ones."""
    if bad := changed_files(folder, manifest):
        raise NemotronError(
            f"changed since the conversion: {', '.join(bad)}",
            where=folder,
            remedy="convert again",
        )
