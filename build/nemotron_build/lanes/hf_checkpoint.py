"""A checkpoint in the Hugging Face layout, which is an engine as it is."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nemotron_build.lanes.lane import BuiltEngine, require_options
from nemotron_build.profile import PyTorchProfile, VllmProfile
from nemotron_convert.target.manifest import Manifest, read_manifest, require_unchanged
from nemotron_convert.target.trtllm_config import CONFIG_NAME
from nemotron_core.engine_settings import HFEngineSettings
from nemotron_core.errors import NemotronError


@dataclass(frozen=True)
class HFCheckpoint:
    """The folder of such a checkpoint, written by `nemotron convert --format hf`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, profile: PyTorchProfile | VllmProfile) -> HFCheckpoint:
        """Raise `NemotronError` if the checkpoint does not fit the profile."""
        manifest = read_manifest(folder)
        if manifest.format != "hf":
            raise NemotronError(
                f"this is a folder of the format {manifest.format}",
                where=folder,
                remedy="convert with --format hf",
            )
        require_options(
            folder, manifest, dtype=profile.dtype, kv_cache_dtype=profile.kv_cache_dtype
        )
        return cls(folder, manifest)

    @property
    def files(self) -> list[str]:
        return sorted(self.manifest.files)

    def link_into(self, folder: Path) -> None:
        """Give all files a second name in `folder`. Raises `NemotronError` if one has changed."""
        require_unchanged(self.folder, self.manifest)
        for name in self.manifest.files:
            _link_or_copy(self.folder / name, folder / name)

    def common_settings(self, profile: PyTorchProfile | VllmProfile) -> dict[str, Any]:
        """Return the fields that an engine's settings have in every lane of this layout."""
        path = self.folder / CONFIG_NAME
        try:
            config = _HFConfig.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise NemotronError("cannot be read", where=path, remedy="convert again") from error
        limits, split = profile.limits, profile.split
        return {
            "vocab_size": config.vocab_size,
            "max_seq_len": min(limits.max_seq_len, config.max_position_embeddings),
            "max_batch_size": limits.max_batch_size,
            "max_num_tokens": limits.max_num_tokens,
            "max_queue_size": limits.max_queue_size,
            "request_seconds": profile.timeouts.request,
            "tp": split.tp,
            "pp": split.pp,
            "gpus_per_node": split.gpus_per_node,
            "kv_cache_dtype": profile.kv_cache_dtype,
        }

    def built(self, settings: HFEngineSettings) -> BuiltEngine:
        """Return the facts about an engine of this checkpoint."""
        return BuiltEngine(
            self.manifest.content_hash,
            settings.max_seq_len,
            settings.vocab_size,
            files=dict(self.manifest.files),
        )


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
