"""`manifest.json`: what an output folder is, where it came from, and the hashes of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nemotron_convert.target.json_files import parse_json, write_json
from nemotron_core.errors import NemotronError
from nemotron_core.files import FileEntry, hash_file, text_digest

MANIFEST_NAME = "manifest.json"


class CalibrationEntry(BaseModel):
    """The texts of a calibration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    """Name of the file with the texts or token ids."""
    is_built_in: bool
    """Whether these are the project's own texts, which are few and short."""
    sequences: int
    tokens: int


class Manifest(BaseModel):
    """The record of one conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    source: str
    """File name of the `.nemo`."""
    format: Literal["trtllm", "hf"] = "trtllm"
    dtype: Literal["bf16", "fp8"]
    kv_cache_dtype: Literal["bf16", "fp8"] = "bf16"
    tp: int
    pp: int
    nonfinite: list[str] = []
    """Tensors of the source that contain NaN or Inf once they are BF16."""
    source_dtypes: list[str] = ["BF16"]
    """Types in which the source stores its tensors."""
    overflow: dict[str, int] = {}
    """Numbers of finite values that became Inf in BF16, by source tensor."""
    underflow: dict[str, int] = {}
    """Numbers of values other than 0 that became 0 in BF16, by source tensor."""
    ignored_tensors: list[str] = []
    """Tensors of the source that were left out by hand."""
    calibration: CalibrationEntry | None = None
    """What the scales of an FP8 conversion were calibrated on."""
    files: dict[str, FileEntry]
    """Size and hash of every file of the folder but this one, by name."""

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) over all file names and hashes; equal for equal checkpoints."""
        lines = "".join(f"{entry.sha256}  {name}\n" for name, entry in sorted(self.files.items()))
        return text_digest(lines)

    def write(self, folder: Path) -> None:
        """Write `manifest.json` in `folder`. Raises `NemotronError` if that is not possible."""
        write_json(folder / MANIFEST_NAME, self.model_dump())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder. Raises `NemotronError` if it is missing or not valid."""
    path = folder / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NemotronError(
            f"no {MANIFEST_NAME}: not a whole checkpoint",
            where=folder,
            remedy="name a folder that `nemotron convert` has written",
        ) from error
    return parse_json(Manifest, data, path)


def require_complete(folder: Path, manifest: Manifest) -> None:
    """Raise `NemotronError` if a file of the manifest is missing or has another size."""
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry.size:
            raise NemotronError(
                f"{name} is missing or cut short", where=folder, remedy="remove it to convert again"
            )


def changed_files(folder: Path, manifest: Manifest) -> list[str]:
    """Read every file and return the names of those that are missing or changed."""
    return [
        name
        for name, expected in manifest.files.items()
        if not (folder / name).is_file() or hash_file(folder / name) != expected
    ]


def require_unchanged(folder: Path, manifest: Manifest) -> None:
    """Read every file. Raises `NemotronError` that names those that are missing or changed."""
    if changed := changed_files(folder, manifest):
        raise NemotronError(
            f"changed since the conversion: {', '.join(changed)}",
            where=folder,
            remedy="convert again",
        )
