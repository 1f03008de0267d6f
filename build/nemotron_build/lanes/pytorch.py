"""The PyTorch lane: the Hugging Face layout behind TensorRT-LLM's `LLM` API."""

from __future__ import annotations

from typing import Any, ClassVar

from nemotron_build.lanes.gpu import GpuLane
from nemotron_build.lanes.hf import HFLane
from nemotron_build.lanes.lane import Library
from nemotron_build.profile import PyTorchProfile
from nemotron_core.engine_settings import PyTorchEngineSettings


class PyTorchLane(HFLane, GpuLane):
    libraries = (Library(("tensorrt-llm",), ("~=1.2.0", ">=1.3.0rc26,<1.4")),)
    settings: ClassVar = PyTorchEngineSettings

    def own_settings(self, profile: PyTorchProfile) -> dict[str, Any]:
        return profile.model_dump(include={"kv_cache_share", "stream_interval"})
