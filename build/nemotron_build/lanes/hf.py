"""The base of the lanes that load a checkpoint in the Hugging Face layout as it is."""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from nemotron_build.lanes.lane import BuildPlan, BuiltEngine, Lane, require_options
from nemotron_build.profile import PyTorchProfile, VllmProfile
from nemotron_convert.target.json_files import parse_json
from nemotron_convert.target.manifest import Manifest, read_manifest, require_unchanged
from nemotron_convert.target.trtllm_config import CONFIG_NAME
from nemotron_core.engine_settings import HFEngineSettings
from nemotron_core.errors import NemotronError


class HFLane(Lane):
    """A lane whose engine is such a checkpoint with a file of settings beside it."""

    settings: ClassVar[type[HFEngineSettings]]

    @abstractmethod
    def own_settings(self, profile: Any) -> dict[str, Any]:
        """Return the fields that only this lane's settings have."""

    def plan(self, checkpoint: Path, output: Path, profile: Any) -> BuildPlan:
        manifest = _read_manifest(checkpoint, profile)
        return BuildPlan([*sorted(manifest.files), self.settings.NAME])

    def conversion(self, profile: Any) -> list[str]:
        return [
            *("--format", "hf", "--dtype", profile.dtype),
            *("--kv-cache-dtype", profile.kv_cache_dtype),
        ]

    def build(self, checkpoint: Path, folder: Path, profile: Any) -> BuiltEngine:
        manifest = _read_manifest(checkpoint, profile)
        require_unchanged(checkpoint, manifest)
        for name in manifest.files:
            _link_or_copy(checkpoint / name, folder / name)
        config = _read_config(checkpoint)
        limits, split = profile.limits, profile.split
        settings = self.settings(
            vocab_size=config.vocab_size,
            max_seq_len=min(limits.max_seq_len, config.max_position_embeddings),
            max_batch_size=limits.max_batch_size,
            max_num_tokens=limits.max_num_tokens,
            max_queue_size=limits.max_queue_size,
            request_seconds=profile.timeouts.request,
            draft=profile.draft_settings,
            tp=split.tp,
            pp=split.pp,
            gpus_per_node=split.gpus_per_node,
            kv_cache_dtype=profile.kv_cache_dtype,
            **self.own_settings(profile),
        )
        settings.write(folder)
        return BuiltEngine(
            manifest.content_hash,
            settings.max_seq_len,
            settings.vocab_size,
            files=dict(manifest.files),
        )


def _read_manifest(checkpoint: Path, profile: PyTorchProfile | VllmProfile) -> Manifest:
    """Return the checkpoint's manifest. Raises `NemotronError` if it does not fit the profile."""
    manifest = read_manifest(checkpoint, "hf")
    require_options(
        checkpoint, manifest, dtype=profile.dtype, kv_cache_dtype=profile.kv_cache_dtype
    )
    return manifest


def _read_config(checkpoint: Path) -> _HFConfig:
    path = checkpoint / CONFIG_NAME
    try:
        return parse_json(_HFConfig, path.read_bytes(), path, remedy="convert again")
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error


class _HFConfig(BaseModel):
    """The fields of the checkpoint's `config.json` that an engine needs."""

    vocab_size: int
    max_position_embeddings: int


def _link_or_copy(source: Path, target: Path) -> None:
    """Give the file a second name, or copy it where the file system has no hard links.

    With a hard link, hundreds of gigabytes lie on the disk only once.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
