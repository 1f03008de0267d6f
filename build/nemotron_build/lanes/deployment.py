"""The data that a lane returns: the serving and the memory layout of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemotron_build.profile import Gpu
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Dtype


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The machines and processes with which `nemotron serve` serves an engine of one profile."""

    shared_memory: int
    """Bytes of shared memory that must be free on each machine."""
    triton: Path | None = None
    """Folder in which Triton is installed. `None` means the server in the wheel nvidia-pytriton."""
    nodes: int = 1
    """Number of machines that the engine takes."""
    gpu: Gpu | None = None
    """The GPU that the engine is for. `None` means that it needs no GPU."""
    gpus_per_node: int = 0

    @property
    def ranks(self) -> int:
        """Number of processes that compute together, one on each GPU."""
        return self.nodes * max(1, self.gpus_per_node)


@dataclass(frozen=True)
class Sizing:
    """The memory layout of an engine, for `nemotron plan`."""

    parallel: Parallel
    weights: Dtype
    kv_cache_dtype: str
    gpu: str | None = None
    """Name of the profile's GPU. `None` means that the engine runs on the CPU."""
    kv_cache_tokens: int | None = None
    """Number of tokens in the KV cache. `None` means that free memory decides."""
    kv_cache_share: float = 0.0
    """Fraction of the free memory that the KV cache takes."""
