"""A stand-in for the parts of TensorRT-LLM's `LLM` API that this project uses, 1.2 and 1.3.

Names, arguments, results and refusals are those of the library's sources, which the docstrings name
by file and version. Instead of GPUs it runs the CPU engine in the model's folder, or whose folder
the file `NEMOTRON_STANDIN_ENGINE` in the model's folder names. Alternatives to tokens are invented.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import llmapi
from .base_llm import COMMON, IS_1_2, VERSION, BaseLLM
from .llmapi import KvCacheConfig
from .sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams", "llmapi"]
__version__ = VERSION


class LLM(BaseLLM):
    """The PyTorch backend: a Hugging Face folder, whose split the arguments name."""

    allowed = COMMON | {
        *("cuda_graph_config", "disable_overlap_scheduler", "stream_interval"),
        *("attn_backend", "sampler_type", "torch_compile_config", "enable_iter_perf_stats"),
        "speculative_config",
    }
    guided_backends = (None, "xgrammar", "llguidance")
    knows_prompt_tokens = not IS_1_2

    def _check(self, folder: Path, arguments: dict[str, Any], kv_cache: KvCacheConfig) -> None:
        assert "model_type" in json.loads((folder / "config.json").read_text())
        self.stream_interval = arguments.get("stream_interval", 1)
        if self.stream_interval < 1:
            raise ValueError("stream_interval must be positive")

    def _world_size(self, folder: Path, arguments: dict[str, Any]) -> int:
        return int(
            arguments.get("tensor_parallel_size", 1) * arguments.get("pipeline_parallel_size", 1)
        )

    def _check_params(self, params: SamplingParams) -> None:
        """Everything is built in."""

    def _log_probs_kind(self, params: SamplingParams) -> int | None:
        """See the base. `return_log_probs` is `bool(logprobs)`, so 0 gives nothing."""
        return params.logprobs or None
