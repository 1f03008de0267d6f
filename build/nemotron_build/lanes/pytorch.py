"""The PyTorch lane: the Hugging Face layout behind TensorRT-LLM's `LLM` API."""

from __future__ import annotations

from pathlib import Path

from nemotron_build.lanes.gpu import GpuLane
from nemotron_build.lanes.hf_checkpoint import HFCheckpoint
from nemotron_build.lanes.lane import BuildPlan, BuiltEngine, Library
from nemotron_build.profile import PyTorchProfile
from nemotron_core.engine_settings import PyTorchEngineSettings


class PyTorchLane(GpuLane):
    libraries = (Library(("tensorrt-llm",), ("~=1.2.0", ">=1.3.0rc26,<1.4")),)

    def plan(self, checkpoint: Path, output: Path, profile: PyTorchProfile) -> BuildPlan:
        source = HFCheckpoint.open(checkpoint, profile)
        return BuildPlan([*source.files, PyTorchEngineSettings.NAME])

    def build(self, checkpoint: Path, folder: Path, profile: PyTorchProfile) -> BuiltEngine:
        source = HFCheckpoint.open(checkpoint, profile)
        source.link_into(folder)
        settings = PyTorchEngineSettings(
            **source.common_settings(profile),
            kv_cache_share=profile.kv_cache_share,
            stream_interval=profile.stream_interval,
        )
        settings.write(folder)
        return source.built(settings)
