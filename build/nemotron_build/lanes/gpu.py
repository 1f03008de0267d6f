"""The base of the lanes on GPUs: TensorRT-LLM in a container with Triton."""

from __future__ import annotations

import sys

from nemotron_build.gpus import require_gpus
from nemotron_build.lanes.deployment import Deployment, Launch, Sizing
from nemotron_build.lanes.lane import Lane
from nemotron_build.profile import GpuProfile
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Dtype

LAUNCHER = "trtllm-llmapi-launch"
"""The library's launcher. It starts its command in the background, splits it at spaces, forwards no
signal and loses the exit code, so only the engine's process is under it."""
SHARED_MEMORY_PER_GPU = 1 << 30
"""Bytes. NCCL takes up to about half of this per rank, Triton's models tens of megabytes."""


class GpuLane(Lane):
    def check_machine(self, profile: GpuProfile) -> None:
        require_gpus(profile.gpu, profile.split.gpus_per_node)

    def deployment(self, profile: GpuProfile) -> Deployment:
        gpus = profile.split.gpus_per_node
        return Deployment(
            shared_memory=SHARED_MEMORY_PER_GPU * gpus,
            triton=profile.triton,
            nodes=profile.split.nodes,
            gpu=profile.gpu,
            gpus_per_node=gpus,
            launch=Launch(
                per_node=gpus,
                prefix=(LAUNCHER, sys.executable, "-m", "nemotron_engine.launched"),
                worker=(LAUNCHER,),
                mark="TLLM_SPAWN_PROXY_PROCESS",
                uses_mpi=True,
            ),
        )

    def sizing(self, profile: GpuProfile) -> Sizing:
        return Sizing(
            Parallel(profile.split.tp, profile.split.pp),
            Dtype(profile.dtype),
            profile.kv_cache_dtype,
            gpu=profile.gpu.name,
            kv_cache_share=profile.kv_cache_share,
        )
