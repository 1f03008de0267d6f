"""`manifest.json`: what an output folder is, where it came from, and the hashes of its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from nemotron_convert.source.config_file import CONFIG_NAMES
from nemotron_convert.source.contents import Contents
from nemotron_convert.source.kind import require_whole
from nemotron_convert.target.json_files import parse_json, write_json
from nemotron_core.errors import NemotronError
from nemotron_core.files import FileEntry, hash_file, text_digest
from nemotron_core.reward import ModelKind

if TYPE_CHECKING:
    from nemotron_convert.source.adapter import Adapter

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


class AdapterEntry(BaseModel):
    """An adapter that was converted with the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    """Name of the adapter's file or folder."""
    kind: str
    """What it is, as `nemotron inspect` names it."""
    details: str
    """Its rank, its scale and what it changes, for a person."""
    sha256: str
    """SHA-256 (hex) of the file, or of the names and hashes of the folder's files."""

    @classmethod
    def of(cls, adapter: Adapter) -> AdapterEntry:
        """Return the entry of an open adapter, for which its file is read."""
        kind, details = adapter.kind.value, str(adapter)
        return cls(file=adapter.name, kind=kind, details=details, sha256=adapter.sha256)


class Manifest(BaseModel):
    """The record of one conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    source: str
    """Name of the `.nemo` or Hugging Face folder; with adapters, of their base model."""
    model: str | None = None
    """Name under which the model is served; without, the gateway has a default."""
    kind: ModelKind = "text"
    """What the model makes: text, or the scores of a reward model."""
    adapters: list[AdapterEntry] = []
    """The adapters that were merged into it, in this order, and a P-tuning."""
    virtual_tokens: int = 0
    """Number of a P-tuning's vectors, which stand before every prompt."""
    format: Literal["trtllm", "hf", "peft"] = "trtllm"
    dtype: Literal["bf16", "fp8", "f32"]
    """Type of the linear layers or, of an adapter, of its factors."""
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
    other_chat_tokens: dict[str, str] = {}
    """Those of the source's `data.chat_prompt_tokens` that differ from the model card's."""
    template_notes: list[str] = []
    """Conversations for which a chat template that came with the source gives other prompts."""
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


def read_manifest(folder: Path, required_format: str | None = None) -> Manifest:
    """Read the manifest of a folder.

    Raises `NemotronError` if it is missing or not valid, or if the folder has another format than
    the required one.
    """
    path = folder / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        require_no_nemo(folder)
        raise NemotronError(
            f"no {MANIFEST_NAME}: not a whole checkpoint",
            where=folder,
            remedy="name a folder that `nemotron convert` has written",
        ) from error
    manifest = parse_json(Manifest, data, path)
    if required_format not in (None, manifest.format):
        raise NemotronError(
            f"this is a folder of the format {manifest.format}",
            where=folder,
            remedy=f"convert with --format {required_format}",
        )
    return manifest


def require_no_nemo(path: Path) -> None:
    """Raise `NemotronError`, which names the kind and the command, if this is a `.nemo`."""
    if not (path.is_file() or any((path / name).is_file() for name in CONFIG_NAMES)):
        return
    with Contents.open(path) as contents:
        kind, base = contents.kind, contents.base
    require_whole(kind, path, base)
    raise NemotronError(
        f"this is {kind.with_article}, not a checkpoint",
        where=path,
        remedy=f"convert it first: nemotron convert {path} -o CHECKPOINT",
    )


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
