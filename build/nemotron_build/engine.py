"""The engine folder: what `nemotron build` writes and `nemotron serve` starts from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemotron_build.openvino_model import build_model
from nemotron_build.profile import Profile
from nemotron_convert.checkpoint import Checkpoint
from nemotron_convert.checkpoint_config import CONFIG_NAME
from nemotron_convert.convert import TOKENIZER_NAME
from nemotron_convert.errors import NemotronError
from nemotron_convert.folder import new_folder
from nemotron_convert.manifest import FileEntry, hash_file
from nemotron_engine.openvino import openvino
from nemotron_engine.settings import CpuEngineSettings

ENGINE_NAME = "engine.json"
LANE_LIBRARIES = {"cpu": ("openvino", "openvino-genai")}
"""Libraries whose version an engine depends on."""


class EngineRecord(BaseModel):
    """`engine.json`: what the folder is, and the hash of each of its files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    lane: str
    profile: Profile
    versions: dict[str, str]
    """Of the libraries it was built with."""
    checkpoint: str
    """SHA-256 (hex) of the checkpoint's content."""
    files: dict[str, FileEntry]


def build_engine(checkpoint_path: Path, output: Path, profile: Profile) -> EngineRecord:
    """Build `profile`'s engine into the new folder `output`, which appears only when whole."""
    checkpoint = Checkpoint.open(checkpoint_path)
    checkpoint.check_hashes()
    if checkpoint.config.apply_query_key_layer_scaling:
        raise NemotronError(
            "apply_query_key_layer_scaling is true, which this model does not have",
            where=checkpoint_path / CONFIG_NAME,
            remedy="convert again",
        )
    with new_folder(output) as folder:
        _BUILDERS[profile.lane](checkpoint, folder, profile)
        shutil.copyfile(checkpoint.tokenizer_path, folder / TOKENIZER_NAME)
        record = EngineRecord(
            lane=profile.lane,
            profile=profile,
            versions={name: version(name) for name in LANE_LIBRARIES[profile.lane]},
            checkpoint=checkpoint.hash,
            files={path.name: hash_file(path) for path in sorted(folder.iterdir())},
        )
        text = record.model_dump_json(indent=2) + "\n"
        (folder / ENGINE_NAME).write_text(text, encoding="utf-8")
    return record


def open_engine(folder: Path) -> EngineRecord:
    """Check an engine folder; NemotronError says why it cannot be served, and what to do."""
    path = folder / ENGINE_NAME
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise NemotronError(
            f"no {ENGINE_NAME}: not an engine",
            where=folder,
            remedy="name a folder that `nemotron build` has written",
        ) from error
    try:
        lane = _LaneOnly.model_validate_json(raw).lane
        if lane not in _BUILDERS:
            raise NemotronError(
                f"this is an engine of the lane {lane!r}, which this version cannot serve here",
                where=folder,
                remedy=f"build one with a profile of the lane {' or '.join(_BUILDERS)}",
            )
        record = EngineRecord.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise NemotronError(
            f"{key}: {first['msg']}", where=path, remedy="build the engine again"
        ) from error
    for name, expected in record.files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != expected.size:
            raise NemotronError(
                f"{name} is missing or cut short", where=folder, remedy="build the engine again"
            )
    for name, built_with in record.versions.items():
        if (found := version(name)) != built_with:
            raise NemotronError(
                f"built with {name} {built_with}, but {found} is installed",
                where=folder,
                remedy="build the engine again",
            )
    return record


class _LaneOnly(BaseModel):
    lane: str


def _build_cpu(checkpoint: Checkpoint, folder: Path, profile: Profile) -> None:
    model = build_model(checkpoint, profile.dtype)
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    limits = profile.limits
    CpuEngineSettings(
        dtype=profile.dtype,
        vocab_size=checkpoint.config.vocab_size,
        max_seq_len=min(limits.max_seq_len, checkpoint.config.max_position_embeddings),
        max_batch_size=limits.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        kv_cache_tokens=limits.kv_cache_tokens,
        max_queue_size=limits.max_queue_size,
        request_seconds=profile.timeouts.request,
    ).write(folder)


_BUILDERS: dict[str, Callable[[Checkpoint, Path, Profile], None]] = {"cpu": _build_cpu}
