"""The data that a lane returns: the serving and the memory layout of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_build.profile import Gpu
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Dtype
from nemotron_core.metrics import STEPS_METRIC
from nemotron_core.wire import ENGINE_INPUTS, ENGINE_OUTPUTS, Tensor


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The machines and processes with which `nemotron serve` serves an engine of one profile."""

    shared_memory: int
    """Bytes of shared memory that must be free on each machine."""
    triton: Path | None = None
    """Folder in which Triton is installed. `None` means the server in the wheel nvidia-pytriton."""
    backends: tuple[str, ...] = ("python",)
    """Names of the Triton backends that the models need."""
    progress_metric: str = STEPS_METRIC
    """Metric on Triton's metrics page that grows with every step of the engine."""
    ranks: int = 1
    """Number of Triton processes that serve the engine together."""
    nodes: int = 1
    """Number of machines on which `serve` starts ranks."""
    gpu: Gpu | None = None
    """The GPU that the engine is for. `None` means that it needs no GPU."""
    gpus_per_node: int = 0


@dataclass(frozen=True, kw_only=True)
class EngineModel:
    """The Triton model `tensorrt_llm`; the defaults are those of our own Python model."""

    parameters: Mapping[str, str]
    backend: str = "python"
    inputs: Sequence[Tensor] = ENGINE_INPUTS
    outputs: Sequence[Tensor] = ENGINE_OUTPUTS
    required_inputs: frozenset[str] = frozenset()
    """Names of the inputs without which Triton refuses a request."""
    max_batch_size: int = 1
    max_queue_size: int | None = None
    """Number of requests that Triton queues for a backend that forms batches itself.

    `None` means that Triton passes on each request when it arrives.
    """

    @property
    def is_foreign(self) -> bool:
        """Whether a backend that is not ours runs the engine.

        Such a backend passes on only tokens, nothing else that a client sent. So other models must
        stand around it.
        """
        return self.backend != "python"


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
