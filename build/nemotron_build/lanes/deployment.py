"""The data that a lane returns: the serving and the memory layout of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemotron_build.profile import Gpu
from nemotron_build.weights import Weights
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Dtype


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the processes of an engine on several machines begin."""

    per_node: int
    """Number of processes to start on each machine."""
    prefix: tuple[str, ...] = ()
    """Command in front of the engine's own. Its first word is a program on PATH."""
    worker: tuple[str, ...] = ()
    """Command of every process but the first. Empty means the engine's own command."""
    mark: str | None = None
    """Environment variable that is set in a process that the prefix has started."""
    uses_mpi: bool = False
    """Whether the library starts processes by MPI where it is alone on one machine."""
    needs_address: bool = False
    """Whether the processes find the first one by the environment variable MASTER_ADDR."""


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
    launch: Launch = Launch(per_node=1)

    @property
    def processes(self) -> int:
        """Number of processes that a launcher starts for the engine."""
        return self.nodes * self.launch.per_node


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
    memory_share: float = 1.0
    """Fraction of the memory that the engine takes in all."""
    packed: Weights = "bf16"
    """Type in which an engine on the CPU holds the weights."""
    all_logits: bool = False
    """Whether a step computes the logits of all its tokens, not only of each prompt's last."""
    kv_cache_share: float = 1.0
    """Fraction of what weights and activations leave of it that the KV cache takes."""
