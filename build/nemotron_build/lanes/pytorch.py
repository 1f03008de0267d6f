"""The PyTorch lane: the Hugging Face layout behind TensorRT-LLM's `LLM` API, 1.3 and later."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from google.protobuf.message import Message
from pydantic import BaseModel, ValidationError

from nemotron_build.gpus import require_gpus
from nemotron_build.lanes.lane import (
    BuildPlan,
    BuiltEngine,
    ModelSettings,
    installed_version,
)
from nemotron_build.profile import PyTorchProfile
from nemotron_convert.target.manifest import Manifest, read_manifest, require_unchanged
from nemotron_convert.target.trtllm_config import CONFIG_NAME
from nemotron_core.engine_settings import PyTorchEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.metrics import STEPS_METRIC
from nemotron_serve import triton_config as model_config

LIBRARY = "tensorrt-llm"
LAST_WITH_ENGINES = (1, 2)
LAUNCHER = "trtllm-llmapi-launch"
"""The library's own: starts the command on the first rank, and keeps the others for it."""
LAUNCHED = "TLLM_SPAWN_PROXY_PROCESS"
"""What it sets."""


class PyTorchLane:
    libraries: tuple[str, ...] = (LIBRARY,)
    progress_metric = STEPS_METRIC

    def plan(self, checkpoint: Path, output: Path, profile: PyTorchProfile) -> BuildPlan:
        manifest = _open(checkpoint, profile)
        return BuildPlan([*sorted(manifest.files), PyTorchEngineSettings.NAME])

    def build(self, checkpoint: Path, folder: Path, profile: PyTorchProfile) -> BuiltEngine:
        manifest = _open(checkpoint, profile)
        require_unchanged(checkpoint, manifest)
        for name in manifest.files:
            _link_or_copy(checkpoint / name, folder / name)
        sizes = _sizes(checkpoint)
        limits, split = profile.limits, profile.split
        settings = PyTorchEngineSettings(
            vocab_size=sizes.vocab_size,
            max_seq_len=min(limits.max_seq_len, sizes.max_position_embeddings),
            max_batch_size=limits.max_batch_size,
            max_num_tokens=limits.max_num_tokens,
            max_queue_size=limits.max_queue_size,
            request_seconds=profile.timeouts.request,
            tp=split.tp,
            pp=split.pp,
            gpus_per_node=split.gpus_per_node,
            kv_cache_dtype=profile.kv_cache_dtype,
            kv_cache_share=profile.kv_cache_share,
        )
        settings.write(folder)
        return BuiltEngine(
            manifest.content_hash,
            settings.max_seq_len,
            settings.vocab_size,
            files=dict(manifest.files),
        )

    def check_versions(self) -> None:
        found = installed_version(LIBRARY)
        if tuple(map(int, found.split(".")[:2])) <= LAST_WITH_ENGINES:
            raise NemotronError(
                f"{LIBRARY} {found} is installed, the PyTorch lane needs 1.3 or later",
                remedy="use a newer container, or a profile of the lane tensorrt",
            )

    def check_machine(self, profile: PyTorchProfile) -> None:
        self.check_versions()
        split = profile.split
        require_gpus(profile.gpu, split.gpus_per_node)
        if split.nodes > 1 and LAUNCHED not in os.environ:
            raise NemotronError(
                f"the engine is for {split.nodes} nodes, and this is one process",
                remedy=f"srun --nodes={split.nodes} --ntasks-per-node={split.gpus_per_node}"
                f" --mpi=pmix {LAUNCHER} nemotron serve …",
            )

    def models(self, settings: ModelSettings) -> list[tuple[Message, str]]:
        return model_config.with_python_engine(
            settings.prompt(), {"gpt_model_path": str(settings.engine), "lane": "pytorch"}
        )


def _open(checkpoint: Path, profile: PyTorchProfile) -> Manifest:
    manifest = read_manifest(checkpoint)
    if manifest.format != "hf":
        raise NemotronError(
            f"this is a folder of the format {manifest.format}",
            where=checkpoint,
            remedy="convert with --format hf",
        )
    wanted = {
        "dtype": (manifest.dtype, profile.dtype, "--dtype"),
        "kv_cache_dtype": (manifest.kv_cache_dtype, profile.kv_cache_dtype, "--kv-cache-dtype"),
    }
    for name, (found, needed, option) in wanted.items():
        if found != needed:
            raise NemotronError(
                f"the checkpoint has {name} {found}, the profile {needed}",
                where=checkpoint,
                remedy=f"convert with {option} {needed}, or use another profile",
            )
    return manifest


class _Sizes(BaseModel):
    """Of the model; the file says much more."""

    vocab_size: int
    max_position_embeddings: int


def _sizes(checkpoint: Path) -> _Sizes:
    path = checkpoint / CONFIG_NAME
    try:
        return _Sizes.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise NemotronError("cannot be read", where=path, remedy="convert again") from error


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for the file, where the file system can; hundreds of gigabytes stay one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
